#pragma once
const char* version();  // of this source: a commit, from the build
