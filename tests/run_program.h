// Running the built programs from tests, as a user would.
#pragma once
#include <string>
#include <vector>

struct ProgramResult {
    int status;             // exit code
    std::string out, err;   // what it printed
};
// Runs build/<this build>/NAME with arguments; the folder comes from the environment variable RESIDUAL_BUILD. input: the
// file it reads as standard input. output: the file its standard output goes to instead of into the result.
ProgramResult run_program(const std::string& name, const std::vector<std::string>& arguments,
                          const std::string& input = "/dev/null", const std::string& output = "");
// Under mpirun with that many ranks.
ProgramResult run_ranks(int ranks, const std::string& name, const std::vector<std::string>& arguments);
// True when RESIDUAL_BUILD names a folder with that program.
bool have_program(const std::string& name);
// A fresh empty folder for a test, removed when the object goes.
struct TempFolder {
    std::string path;
    TempFolder();
    ~TempFolder();
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
};
