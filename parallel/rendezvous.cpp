#include "parallel/rendezvous.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/error.h"

namespace {

const char* environment(const char* name) {
    const char* value = getenv(name);
    return value && *value ? value : nullptr;
}

int number(const char* name) {
    const char* text = environment(name);
    char* end = nullptr;
    errno = 0;
    const long value = text ? strtol(text, &end, 10) : 0;
    if (!text || *end || errno || value < 0 || value > INT_MAX) {
        throw user_error("the launcher's variable %s is \"%s\"; a number was expected", name, text ? text : "");
    }
    return static_cast<int>(value);
}

std::string joined(std::initializer_list<const char*> names) {
    std::string out;
    for (const char* name : names) {
        if (const char* value = environment(name)) out += std::string(name) + "=" + value + ";";
    }
    return out;
}

}  // namespace

Launch launch_from_environment() {
    struct Source {
        const char *launcher, *rank, *size, *local_rank, *only_with;
    };
    // A batch script has SLURM's variables too; only srun's tasks have a step.
    static const Source sources[] = {
        {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", nullptr},
        {"mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", nullptr},
        {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_ID"},
        {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "WORLD_SIZE"},
    };
    Launch launch;
    for (const Source& source : sources) {
        if (!environment(source.rank) || !environment(source.size)) continue;
        if (source.only_with && !environment(source.only_with)) continue;
        launch.launcher = source.launcher;
        launch.rank = number(source.rank);
        launch.size = number(source.size);
        if (environment(source.local_rank)) {
            launch.local_rank = number(source.local_rank);
        } else {
            launch.local_rank = environment("SLURM_LOCALID") ? number("SLURM_LOCALID") : launch.rank;
        }
        if (launch.size < 1 || launch.rank >= launch.size) {
            throw user_error("the launcher says rank %d of %d (%s, %s); ranks are numbered from 0", launch.rank,
                             launch.size, source.rank, source.size);
        }
        break;
    }
    launch.job = joined({"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID",
                         "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"});
    if (launch.job.empty()) launch.job = format("parent=%d", static_cast<int>(getppid()));
    return launch;
}

// ---------------------------------------------------------------------------------------------------------------------
// Rank r > 0 writes a number that nobody can guess into its file `rank_r`. When rank 0 has seen all of them it
// publishes the data with the list of numbers. Rank r takes only data whose list holds its number, then removes its
// file; when all are removed, rank 0 is done. So a file of an earlier job is never taken for one of this: old data lack
// the number, and an old `rank_r` is overwritten by the living rank, whereupon rank 0 publishes anew. Files are written
// aside and renamed, so that nobody reads half of one.

namespace {

using Clock = std::chrono::steady_clock;
using Nonce = uint64_t;

std::string read_file(const std::string& path) {
    std::string content;
    if (FILE* file = fopen(path.c_str(), "rb")) {
        char buffer[4096];
        for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) content.append(buffer, n);
        fclose(file);
    }
    return content;
}

bool write_file(const std::string& path, const std::string& content) {
    const std::string aside = path + format(".%d", static_cast<int>(getpid()));
    FILE* file = fopen(aside.c_str(), "wb");
    if (!file) return false;
    const bool written = fwrite(content.data(), 1, content.size(), file) == content.size();
    if (fclose(file) != 0 || !written || rename(aside.c_str(), path.c_str()) != 0) {
        unlink(aside.c_str());
        return false;
    }
    return true;
}

template <class T>
std::string bytes_of(const T& value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

struct Meeting {
    const Launch& launch;
    std::string folder, data_file;
    int seconds = 120;
    Clock::time_point deadline;

    explicit Meeting(const Launch& launch_) : launch(launch_) {
        const char* base = environment("RESIDUAL_RENDEZVOUS");
        if (!base) base = environment("TMPDIR");
        if (!base) base = "/tmp";
        uint64_t hash = 14695981039346656037ull;  // FNV-1a
        for (unsigned char c : launch.job) hash = (hash ^ c) * 1099511628211ull;
        folder =
            format("%s/residual-%d-%016llx", base, static_cast<int>(getuid()), static_cast<unsigned long long>(hash));
        data_file = folder + "/data";
        if (environment("RESIDUAL_RENDEZVOUS_SECONDS")) seconds = number("RESIDUAL_RENDEZVOUS_SECONDS");
        deadline = Clock::now() + std::chrono::seconds(seconds);
    }
    std::string rank_file(int rank) const { return folder + format("/rank_%d", rank); }

    // Ours alone: in a temporary folder anybody could have put it there. It may vanish when a job of the same name
    // ends.
    void make_folder() const {
        if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
            throw user_error(
                "%s: cannot make this folder, where ranks meet: %s; set RESIDUAL_RENDEZVOUS to a folder that all "
                "ranks can write",
                folder.c_str(), strerror(errno));
        }
        struct stat info = {};
        if (lstat(folder.c_str(), &info) == 0 && (!S_ISDIR(info.st_mode) || info.st_uid != geteuid())) {
            throw user_error("%s: exists and is not a folder of yours; remove it or set RESIDUAL_RENDEZVOUS",
                             folder.c_str());
        }
    }
    void publish(const std::string& path, const std::string& content) const {
        make_folder();
        while (!write_file(path, content)) {
            if (Clock::now() > deadline) throw user_error("%s: cannot write: %s", path.c_str(), strerror(errno));
            pause();
            make_folder();
        }
    }
    static void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

    void lead(const std::string& data) const {
        make_folder();
        const size_t size = static_cast<size_t>(launch.size);
        std::vector<std::string> nonces(size);
        std::vector<bool> gone(size, false);
        size_t seen = 0, finished = 0;
        bool stale = true;  // what is published is not what was seen
        while (finished + 1 < size) {
            for (size_t r = 1; r < size; r++) {
                const std::string nonce = read_file(rank_file(static_cast<int>(r)));
                if (nonce.size() == sizeof(Nonce) && nonce != nonces[r]) {
                    if (nonces[r].empty()) seen++;
                    if (gone[r]) finished--;
                    nonces[r] = nonce;
                    gone[r] = false;
                    stale = true;
                } else if (nonce.empty() && !stale && !gone[r]) {
                    gone[r] = true;
                    finished++;
                }
            }
            if (seen + 1 == size && stale) {
                std::string content = data + std::string(sizeof(Nonce), '\0');
                for (size_t r = 1; r < size; r++) content += nonces[r];
                publish(data_file, content);
                stale = false;
            }
            if (Clock::now() > deadline) {
                unlink(data_file.c_str());
                rmdir(folder.c_str());
                throw user_error(
                    "only %zu of %zu ranks came to %s within %d seconds; were all started by one %s, and do all see "
                    "that folder (RESIDUAL_RENDEZVOUS)?",
                    seen + 1, size, folder.c_str(), seconds, launch.launcher.c_str());
            }
            if (finished + 1 < size) pause();
        }
        unlink(data_file.c_str());
        rmdir(folder.c_str());
    }

    std::string follow(size_t bytes) const {
        std::random_device device;
        const std::string nonce = bytes_of<Nonce>((static_cast<Nonce>(device()) << 32) | device());
        const std::string mine = rank_file(launch.rank);
        publish(mine, nonce);
        const size_t expected = bytes + sizeof(Nonce) * static_cast<size_t>(launch.size);
        while (true) {
            const std::string content = read_file(data_file);
            const size_t at = bytes + sizeof(Nonce) * static_cast<size_t>(launch.rank);
            if (content.size() == expected && content.compare(at, sizeof(Nonce), nonce) == 0) {
                unlink(mine.c_str());
                return content.substr(0, bytes);
            }
            if (Clock::now() > deadline) {
                unlink(mine.c_str());
                rmdir(folder.c_str());
                throw user_error(
                    "rank %d waited %d seconds for rank 0 at %s in vain; do all ranks see that folder "
                    "(RESIDUAL_RENDEZVOUS)?",
                    launch.rank, seconds, folder.c_str());
            }
            pause();
        }
    }
};

}  // namespace

void rendezvous(const Launch& launch, void* data, size_t bytes) {
    if (launch.size == 1) return;
    Meeting meeting(launch);
    if (launch.rank == 0) {
        meeting.lead(std::string(static_cast<const char*>(data), bytes));
    } else {
        const std::string got = meeting.follow(bytes);
        memcpy(data, got.data(), bytes);
    }
}
