#include "driver/stop.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

// An update may take minutes: a second Ctrl-C does not wait. A second SIGTERM does, for a batch system may send it to
// the launcher and to the ranks, so that one reaches a rank twice. (Ctrl-C of mpirun comes to the ranks as SIGTERM.)
static volatile sig_atomic_t signal_seen = 0;
static void on_signal(int number) {
    signal_seen = 1;
    if (number != SIGINT) return;
    std::signal(SIGINT, SIG_DFL);
    static constexpr char note[] =
        "\ninterrupted: ends after this update, with a checkpoint; Ctrl-C again stops at once\n";
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, note, sizeof note - 1);
}

void stop_on_signals() {
    for (int number : {SIGINT, SIGTERM, SIGUSR1, SIGPIPE})
        std::signal(number, on_signal);                                           // mpirun passes only USR1 on
    if (std::signal(SIGHUP, on_signal) == SIG_IGN) std::signal(SIGHUP, SIG_IGN);  // as nohup wants it
}

bool stop_asked() {
    return signal_seen != 0;
}
