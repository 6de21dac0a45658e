// The collectives with one rank, and how ranks find each other. Several ranks: tests/ranks.cpp under mpirun.
#include <nccl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "parallel/comm.h"
#include "parallel/rendezvous.h"
#include "test.h"

namespace {

namespace fs = std::filesystem;

const char* const LAUNCHER_VARIABLES[] = {"OMPI_COMM_WORLD_RANK",
                                          "OMPI_COMM_WORLD_SIZE",
                                          "OMPI_COMM_WORLD_LOCAL_RANK",
                                          "PMI_RANK",
                                          "PMI_SIZE",
                                          "MPI_LOCALRANKID",
                                          "SLURM_PROCID",
                                          "SLURM_STEP_NUM_TASKS",
                                          "SLURM_NTASKS",
                                          "SLURM_LOCALID",
                                          "SLURM_STEP_ID",
                                          "SLURM_JOB_ID",
                                          "RANK",
                                          "WORLD_SIZE",
                                          "LOCAL_RANK",
                                          "PMIX_NAMESPACE",
                                          "OMPI_MCA_ess_base_jobid",
                                          "MASTER_ADDR",
                                          "MASTER_PORT",
                                          "TORCHELASTIC_RUN_ID",
                                          "RESIDUAL_RENDEZVOUS",
                                          "RESIDUAL_RENDEZVOUS_SECONDS"};

// The environment of a process started by itself plus `settings`, until the end of the scope.
struct Environment {
    std::vector<std::pair<std::string, std::string>> before;
    explicit Environment(std::initializer_list<std::pair<const char*, std::string>> settings) {
        for (const char* name : LAUNCHER_VARIABLES) {
            if (const char* value = getenv(name)) before.emplace_back(name, value);
            unsetenv(name);
        }
        for (const auto& [name, value] : settings) setenv(name, value.c_str(), 1);
    }
    ~Environment() {
        for (const char* name : LAUNCHER_VARIABLES) unsetenv(name);
        for (const auto& [name, value] : before) setenv(name.c_str(), value.c_str(), 1);
    }
};

struct Folder {
    fs::path path;
    Folder() {
        char name[] = "/tmp/residual-test-XXXXXX";
        REQUIRE(mkdtemp(name));
        path = name;
    }
    ~Folder() { fs::remove_all(path); }
};

// What rank r of `size` threads gets; an error's text if it was thrown.
std::vector<std::string> meet(int size, const std::string& job, int late_rank = -1, int missing_rank = -1) {
    std::vector<std::string> got(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int r = 0; r < size; r++) {
        if (r == missing_rank) continue;
        threads.emplace_back([&, r] {
            if (r == late_rank) std::this_thread::sleep_for(std::chrono::milliseconds(200));
            Launch launch;
            launch.rank = r, launch.size = size, launch.launcher = "test", launch.job = job;
            char data[9] = "--------";
            if (r == 0) snprintf(data, sizeof data, "%s", "message!");
            try {
                rendezvous(launch, data, 8);
                got[static_cast<size_t>(r)] = data;
            } catch (const UserError& error) {
                got[static_cast<size_t>(r)] = error.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return got;
}

}  // namespace

TEST_CASE("launchers", "[comm]") {
    {
        Environment none({});
        const Launch launch = launch_from_environment();
        CHECK((launch.rank == 0 && launch.size == 1 && launch.local_rank == 0 && launch.launcher.empty()));
    }
    {
        Environment mpirun({{"OMPI_COMM_WORLD_RANK", "5"},
                            {"OMPI_COMM_WORLD_SIZE", "8"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"SLURM_PROCID", "0"},
                            {"SLURM_STEP_NUM_TASKS", "2"},
                            {"SLURM_STEP_ID", "0"}});
        const Launch launch = launch_from_environment();
        CHECK((launch.rank == 5 && launch.size == 8 && launch.local_rank == 1 && launch.launcher == "mpirun"));
    }
    {
        Environment torchrun({{"RANK", "3"},
                              {"WORLD_SIZE", "4"},
                              {"LOCAL_RANK", "3"},
                              {"MASTER_ADDR", "host"},
                              {"MASTER_PORT", "29500"}});
        const Launch launch = launch_from_environment();
        CHECK((launch.rank == 3 && launch.size == 4 && launch.local_rank == 3 && launch.launcher == "torchrun"));
        CHECK(launch.job.find("29500") != std::string::npos);
    }
    {
        Environment srun({{"SLURM_PROCID", "1"},
                          {"SLURM_STEP_NUM_TASKS", "2"},
                          {"SLURM_LOCALID", "0"},
                          {"SLURM_STEP_ID", "0"},
                          {"SLURM_JOB_ID", "77"}});
        const Launch launch = launch_from_environment();
        CHECK((launch.rank == 1 && launch.size == 2 && launch.local_rank == 0 && launch.launcher == "srun"));
    }
    {
        Environment batch_script(
            {{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_NTASKS", "4"}, {"SLURM_JOB_ID", "77"}});
        CHECK(launch_from_environment().size == 1);
    }
    {
        Environment wrong({{"RANK", "4"}, {"WORLD_SIZE", "4"}});
        CHECK_THROWS_AS(launch_from_environment(), UserError);
    }
    {
        Environment wrong({{"OMPI_COMM_WORLD_RANK", "one"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
        CHECK_THROWS_WITH(launch_from_environment(), Catch::Contains("OMPI_COMM_WORLD_RANK") && Catch::Contains("one"));
    }
}

TEST_CASE("ranks meet", "[comm]") {
    Folder folder;
    Environment environment({{"RESIDUAL_RENDEZVOUS", folder.path.string()}, {"RESIDUAL_RENDEZVOUS_SECONDS", "20"}});
    for (int late : {-1, 0, 2}) {
        for (int again = 0; again < 3; again++) {  // the same name again and again, at once
            for (const std::string& got : meet(4, "job", late)) CHECK(got == "message!");
        }
        CHECK(fs::is_empty(folder.path));
    }
}

TEST_CASE("ranks meet over the remains of a crashed job", "[comm]") {
    Folder folder;
    Environment environment({{"RESIDUAL_RENDEZVOUS", folder.path.string()}, {"RESIDUAL_RENDEZVOUS_SECONDS", "20"}});
    // A job of three that stops when rank 0 has gone: find its folder's name, then put files there as it would have
    // left them.
    std::thread waiting([] { meet(2, "job", -1, 0); });
    fs::path inside;
    for (int i = 0; i < 2000 && inside.empty(); i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        for (const auto& entry : fs::directory_iterator(folder.path)) inside = entry.path();
    }
    REQUIRE_FALSE(inside.empty());
    meet(2, "job", -1, 1);  // lets the waiting rank go
    waiting.join();
    fs::create_directory(inside);
    std::ofstream(inside / "rank_1") << "oldnonce";
    std::ofstream(inside / "rank_2") << "oldnonc2";
    std::ofstream(inside / "data") << "outdated" << std::string(8, '\0') << "oldnonce"
                                   << "oldnonc2";
    for (int late : {-1, 0, 1}) {
        for (const std::string& got : meet(3, "job", late)) CHECK(got == "message!");
        fs::create_directories(inside);
        std::ofstream(inside / "rank_1") << "oldnonce";
        std::ofstream(inside / "data") << "outdated" << std::string(24, 'x');
    }
}

TEST_CASE("ranks that don't come", "[comm]") {
    Folder folder;
    Environment environment({{"RESIDUAL_RENDEZVOUS", folder.path.string()}, {"RESIDUAL_RENDEZVOUS_SECONDS", "1"}});
    std::vector<std::string> got = meet(3, "job", -1, 2);
    CHECK(got[0].find("2 of 3 ranks") != std::string::npos);
    CHECK(got[1].find("rank 1 waited 1 seconds for rank 0") != std::string::npos);
    got = meet(2, "job", -1, 0);
    CHECK(got[1].find(folder.path.string()) != std::string::npos);
    CHECK(fs::is_empty(folder.path));
    setenv("RESIDUAL_RENDEZVOUS", "/nowhere/at/all", 1);
    got = meet(2, "job");
    for (const std::string& error : got) CHECK(error.find("/nowhere/at/all") != std::string::npos);
}

TEST_CASE("one rank needs nobody", "[comm]") {
    Environment environment({});
    Comm* comm = comm_create();
    CHECK((comm_rank(comm) == 0 && comm_size(comm) == 1 && comm_local_rank(comm) == 0));
    double values[2] = {1.5, -2};
    comm_sum(comm, values, 2);
    CHECK((values[0] == 1.5 && values[1] == -2));
    CHECK(comm_broadcast(comm, -5) == -5);
    CHECK(comm_max(comm, -5) == -5);
    Device<float> x(std::vector<float>{1, 2});
    comm_average(comm, x.data, 2, nullptr);
    CHECK(x.read() == std::vector<float>{1, 2});
    comm_barrier(comm);
    comm_destroy(comm);
}

TEST_CASE("NCCL with one rank", "[nccl]") {
    ncclUniqueId id = {};
    ncclComm_t comm = nullptr;
    int version = 0;
    REQUIRE(ncclGetVersion(&version) == ncclSuccess);
    CHECK(version >= 20000);
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    REQUIRE(ncclCommInitRank(&comm, 1, id, 0) == ncclSuccess);
    for (ncclRedOp_t op : {ncclSum, ncclAvg, ncclMax, ncclMin, ncclProd}) {
        Device<float> from(std::vector<float>{1, -2, 3.25f}), to(3);
        to.poison();
        CHECK(ncclAllReduce(from.data, to.data, 3, ncclFloat32, op, comm, nullptr) == ncclSuccess);
        CHECK(to.read() == from.read());
        to.poison();
        CHECK(ncclReduceScatter(from.data, to.data, 3, ncclFloat32, op, comm, nullptr) == ncclSuccess);
        CHECK(to.read() == from.read());
    }
    CHECK(ncclCommDestroy(comm) == ncclSuccess);
}
