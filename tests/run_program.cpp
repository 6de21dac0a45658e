#include "run_program.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace fs = std::filesystem;

static std::string quoted(const std::string& word) {
    std::string out = "'";
    for (char ch : word) {
        if (ch == '\'') {
            out += "'\\''";
        } else {
            out += ch;
        }
    }
    return out + "'";
}

static std::string slurp(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

static std::string build_folder() {
    const char* folder = getenv("RESIDUAL_BUILD");
    return folder ? folder : "";
}

bool have_program(const std::string& name) {
    return !build_folder().empty() && fs::exists(build_folder() + "/" + name);
}

static ProgramResult run_command(const std::string& command, const std::string& input = "/dev/null",
                                 const std::string& output = "") {
    TempFolder folder;
    const std::string out = output.empty() ? folder.path + "/out" : output, err = folder.path + "/err";
    const int raw = std::system((command + " > " + quoted(out) + " 2> " + quoted(err) + " < " + quoted(input)).c_str());
    ProgramResult result;
    result.status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
    if (output.empty()) result.out = slurp(out);
    result.err = slurp(err);
    return result;
}

static std::string command_line(const std::string& name, const std::vector<std::string>& arguments) {
    std::string command = quoted(build_folder() + "/" + name);
    for (const std::string& argument : arguments) command += " " + quoted(argument);
    return command;
}

ProgramResult run_program(const std::string& name, const std::vector<std::string>& arguments,
                          const std::string& input, const std::string& output) {
    return run_command(command_line(name, arguments), input, output);
}

ProgramResult run_ranks(int ranks, const std::string& name, const std::vector<std::string>& arguments) {
    // Root is refused by default, and more ranks than cores are on purpose here.
    return run_command("OMP_NUM_THREADS=1 mpirun --allow-run-as-root --oversubscribe -np " + std::to_string(ranks) + " " +
                       command_line(name, arguments));
}

TempFolder::TempFolder() {
    std::string pattern = fs::temp_directory_path().string() + "/residual_test_XXXXXX";
    if (!mkdtemp(pattern.data())) abort();
    path = pattern;
}
TempFolder::~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
}
