#include "driver/log.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "driver/version.h"
#include "kernels/error.h"
#include "parallel/rendezvous.h"

using nlohmann::ordered_json;

namespace {

// A number, null if it is none: JSON has neither NaN nor infinity. Doubles are written so that they read back exactly.
ordered_json number(double value) {
    return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

void write(Log& log, const ordered_json& event) {
    if (log.file == nullptr) return;
    // Prompts and samples are bytes; what is no UTF-8 is replaced rather than refused.
    const std::string line = event.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
    if (fwrite(line.data(), 1, line.size(), log.file) != line.size() || fflush(log.file) != 0)
        throw user_error("%s: cannot be written: %s; free some space or choose another --out", log.path.c_str(),
                         strerror(errno));
}

int terminal_width() {
    winsize size = {};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

void draw_bar(const Log& log) {
    if (!log.terminal || log.step == 0 || log.step >= log.steps) return;
    const double done = static_cast<double>(log.step) / static_cast<double>(log.steps);
    const std::string left = time_text(log.seconds_per_step * static_cast<double>(log.steps - log.step));
    const std::string tail = format(" %3.0f%%  %s left", 100 * done, left.c_str());
    const int width = std::max(10, std::min(60, terminal_width() - static_cast<int>(tail.size()) - 3));
    const int filled = static_cast<int>(done * width);
    printf("[%s%s]%s", std::string(static_cast<size_t>(filled), '#').c_str(),
           std::string(static_cast<size_t>(width - filled), '.').c_str(), tail.c_str());
}

// Text of a model that may say anything: line ends are shown, other control characters must not reach the terminal.
std::string one_line(const std::string& text) {
    std::string line;
    for (char c : text) {
        if (c == '\n')
            line += "\\n";
        else
            line += (c >= 0 && c < ' ') || c == 127 ? '.' : c;
    }
    return line;
}

// An option's value as what it is: a number, true or false, else text.
ordered_json typed(const std::string& value) {
    const ordered_json parsed = ordered_json::parse(value, nullptr, false);
    return parsed.is_number() || parsed.is_boolean() ? parsed : ordered_json(value);
}

}  // namespace

std::string with_unit(double number) {
    for (auto [unit, size] : {std::pair{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}}) {
        if (number >= size) return format("%.3g%s", number / size, unit);
    }
    return format("%.3g", number);
}

std::string bytes_text(double bytes) {
    if (bytes >= 0x1p30) return format("%.2f GiB", bytes / 0x1p30);
    return bytes >= 0x1p20 ? format("%.1f MiB", bytes / 0x1p20) : format("%.1f KiB", bytes / 0x1p10);
}

std::string time_text(double seconds) {
    const long long s = std::llround(std::max(seconds, 0.0));
    if (s >= 3600) return format("%lldh %02lldm", s / 3600, s % 3600 / 60);
    return s >= 60 ? format("%lldm %02llds", s / 60, s % 60) : format("%llds", s);
}

Log log_open(const std::string& run, int64_t steps, int rank) {
    Log log;
    log.steps = steps;
    if (rank != 0) return log;
    log.path = run + "/log.jsonl";
    log.file = fopen(log.path.c_str(), "a");
    if (log.file == nullptr)
        throw user_error("%s: cannot be written: %s; choose another --out", log.path.c_str(), strerror(errno));
    // mpirun puts a terminal of its own behind stdout, wherever that leads: no bar there.
    log.terminal = isatty(STDOUT_FILENO) != 0 && launch_from_environment().launcher.empty();
    return log;
}

void log_close(Log& log) {
    if (log.file != nullptr) fclose(log.file);
    log.file = nullptr;
}

void log_cut(const std::string& run, int64_t step) {
    const std::string path = run + "/log.jsonl";
    if (!file_exists(path)) return;
    const std::string text = read_text(path);
    size_t kept = 0;
    while (kept < text.size()) {
        const size_t end = text.find('\n', kept);
        if (end == std::string::npos) break;
        const ordered_json event = ordered_json::parse(text.substr(kept, end - kept), nullptr, false);
        if (!event.is_object() || event.value("event", "") == "end") break;
        if (event.contains("step") && event["step"].is_number() && event["step"].get<int64_t>() > step) break;
        kept = end + 1;
    }
    if (kept < text.size()) write_text_atomic(path, text.substr(0, kept));
}

void log_line(Log& log, const std::string& text) {
    if (log.file == nullptr) return;
    if (log.terminal) printf("\r\033[K");
    printf("%s\n", text.c_str());
    draw_bar(log);
    fflush(stdout);
}

void log_start(Log& log, const StartRecord& start) {
    ordered_json settings = ordered_json::object();
    for (const auto& [name, value] : start.settings) settings[name] = typed(value);
    const Machine& machine = start.machine;
    ordered_json event = {{"event", "start"},
                          {"version", version()},
                          {"options", settings},
                          {"model", ordered_json::parse(config_to_json(*start.config))},
                          {"parameters", start.parameters},
                          {"flops_per_token", number(start.flops_per_token)},
                          {"world_size", start.world_size},
                          {"precision", machine.precision},
                          {"machine",
                           {{"device", machine.device},
                            {"multiprocessors", machine.multiprocessors},
                            {"memory_bytes", machine.total_bytes}}},
                          {"peak_flops", machine.peak_flops > 0 ? number(machine.peak_flops) : ordered_json(nullptr)},
                          {"peak_flops_source", machine.peak_source},
                          {"versions", library_versions()}};
    write(log, event);
    log_line(log,
             format("%s parameters, %s FLOPs per token, on %s%s in %s",
                    with_unit(static_cast<double>(start.parameters)).c_str(), with_unit(start.flops_per_token).c_str(),
                    start.world_size > 1 ? format("%d x ", start.world_size).c_str() : "", machine.device.c_str(),
                    machine.precision.c_str()));
    log_line(log, mfu_formula(machine, start.flops_per_token, start.world_size));
}

void log_step(Log& log, const StepRecord& s) {
    const double tokens_per_s = static_cast<double>(s.update_tokens) / (s.ms * 1e-3);
    const double mfu = s.peak_flops > 0 ? tokens_per_s * s.flops_per_token / s.peak_flops : NAN;
    write(log, {{"event", "step"},
                {"step", s.step},
                {"tokens", s.tokens},
                {"loss", number(s.loss)},
                {"grad_norm", number(s.grad_norm)},
                {"lr", number(s.lr)},
                {"ms", number(s.ms)},
                {"tokens_per_s", number(tokens_per_s)},
                {"mfu", number(mfu)}});
    // The first update warms caches and libraries up, so it says little about the others.
    const double seconds = s.ms * 1e-3;
    log.seconds_per_step =
        log.step == 0 || log.seconds_per_step > 3 * seconds ? seconds : 0.95 * log.seconds_per_step + 0.05 * seconds;
    log.step = s.step;
    std::string line =
        format("step %*lld/%lld  loss %.6f  norm %.4f  lr %.3e  %.1f ms  %s tokens/s",
               static_cast<int>(std::to_string(log.steps).size()), static_cast<long long>(s.step),
               static_cast<long long>(log.steps), s.loss, s.grad_norm, s.lr, s.ms, with_unit(tokens_per_s).c_str());
    if (std::isfinite(mfu)) line += format("  %.1f%% MFU", 100 * mfu);
    log_line(log, line);
}

void log_val(Log& log, int64_t step, double loss) {
    write(log, {{"event", "val"}, {"step", step}, {"loss", number(loss)}});
    log_line(log, format("step %lld  validation loss %.6f", static_cast<long long>(step), loss));
}

void log_eval(Log& log, int64_t step, const Scores& scores) {
    ordered_json event = {{"event", "eval"}, {"step", step}};
    event.update(scores_json(scores));
    write(log, event);
    log_line(log, format("step %lld  %s", static_cast<long long>(step), scores_line(scores).c_str()));
}

void log_sample(Log& log, int64_t step, const std::string& prompt, const std::string& text) {
    write(log, {{"event", "sample"}, {"step", step}, {"prompt", prompt}, {"text", text}});
    log_line(log, format("step %lld  sample: %s", static_cast<long long>(step), one_line(prompt + text).c_str()));
}

void log_layers(Log& log, int64_t step, const std::string& layers) {
    write(log, {{"event", "layers"}, {"step", step}, {"layers", nlohmann::json::parse(layers)}});
}

void log_skip(Log& log, int64_t step, const std::string& why) {
    write(log, {{"event", "skip"}, {"step", step}, {"reason", why}});
    log_line(log, format("step %lld  skipped: %s", static_cast<long long>(step), why.c_str()));
}

void log_checkpoint(Log& log, int64_t step, const std::string& folder) {
    write(log, {{"event", "checkpoint"}, {"step", step}, {"folder", folder}});
    log_line(log, format("step %lld  checkpoint %s", static_cast<long long>(step), folder.c_str()));
}

void log_resume(Log& log, int64_t step, int64_t tokens, const std::string& folder,
                const std::vector<std::string>& notes) {
    write(log, {{"event", "resume"}, {"step", step}, {"tokens", tokens}, {"folder", folder}, {"notes", notes}});
    log_line(log, format("resumed at step %lld from %s", static_cast<long long>(step), folder.c_str()));
    log.step = 0;  // the time per step is measured anew
}

void log_end(Log& log, int64_t step, const std::string& reason, double seconds) {
    write(log, {{"event", "end"}, {"step", step}, {"reason", reason}, {"seconds", number(seconds)}});
    log.step = log.steps;  // no bar behind the last line
    log_line(log, format("%s at step %lld after %s", reason.c_str(), static_cast<long long>(step),
                         time_text(seconds).c_str()));
}
