// Signals that end a run after its update, with a checkpoint: INT, TERM, USR1, HUP (but under nohup), and PIPE, which a
// closed `| head` sends.
#pragma once

void stop_on_signals();
bool stop_asked();  // since then
