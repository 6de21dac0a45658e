// Files of tests: names in a temporary folder, raw bytes, and the message of a refused one.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>

#include "kernels/error.h"
#include "run_program.h"  // TempFolder

inline std::string operator/(const TempFolder& folder, const std::string& name) {
    return folder.path + "/" + name;
}

// Bytes as they are: no temporary name, no sync. Removed first: ext4 writes a file that is cut and filled again to
// disk.
inline void put_bytes(const std::string& path, const std::string& bytes) {
    remove(path.c_str());
    FILE* file = fopen(path.c_str(), "wb");
    if (!file || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || fclose(file) != 0) {
        programming_error("cannot write", path.c_str(), __FILE__, __LINE__);
    }
}

// The message of the UserError that `action` throws; "" when it throws none. A message is one line.
template <class Action>
std::string user_error_of(Action action) {
    try {
        action();
    } catch (const UserError& error) {
        std::string message = error.what();
        return message.find('\n') == std::string::npos ? message : "SEVERAL LINES: " + message;
    }
    return "";
}
