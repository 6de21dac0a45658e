#include "driver/cli.h"

#include <charconv>
#include <set>

#include "driver/version.h"
#include "kernels/error.h"

void cli_defaults(CLI::App& app, const char* name) {
    app.name(name);
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)->always_capture_default();
    app.set_help_flag("--help,-h", "print this and stop");
    app.set_version_flag("--version", std::string("residual.cu ") + version());
}

CLI::Validator whole_number() {
    auto check = [](std::string& text) {
        uint64_t value = 0;
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, value);
        return error == std::errc() && stop == end ? std::string()
                                                   : text + " is no whole number from 0 to 18446744073709551615";
    };
    return CLI::Validator(check, "");
}

// CLI11 takes an empty text for 0 (--lr "$LR" without LR would train at rate 0), 010 for 8, and the largest number there
// is for one that is too large.
static void refuse_what_is_no_number(CLI::App& app) {
    static const std::set<std::string> whole = {"INT", "N"}, any = {"FLOAT", "GIB", "PART", "F"};
    const CLI::Validator whole_only(
        [](std::string& text) {
            int64_t value = 0;
            const bool sign = text.size() > 1 && text[0] == '+' && text[1] != '-';
            const char *start = text.data() + (sign ? 1 : 0), *end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(start, end, value);
            if (error != std::errc() || stop != end)
                return "'" + text + "' is no whole number" + (error == std::errc::result_out_of_range ? " in range" : "");
            text = std::to_string(value);
            return std::string();
        },
        "");
    const CLI::Validator number(
        [](std::string& text) {
            double value = 0;
            return !text.empty() && CLI::detail::lexical_cast(text, value) ? "" : "'" + text + "' is no number";
        },
        "");
    for (CLI::Option* option : app.get_options()) {
        if (whole.count(option->get_type_name()) > 0) option->transform(whole_only);
        if (any.count(option->get_type_name()) > 0) option->check(number);
    }
}

bool cli_parse(CLI::App& app, int argc, char** argv) {
    refuse_what_is_no_number(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& answer) {
        app.exit(answer);
        return false;
    } catch (const CLI::ExtrasError&) {
        const std::vector<std::string> extras = app.remaining();
        for (const std::string& word : extras) {
            if (word[0] == '-') throw user_error("there is no option %s; --help lists all", word.c_str());
        }
        throw user_error("'%s' belongs to no option; --help lists all", extras.empty() ? "" : extras[0].c_str());
    } catch (const CLI::FileError& error) {
        throw user_error("--config: %s", error.what());
    } catch (const CLI::ConfigError& error) {
        std::string what = error.what();
        const std::string unknown = "INI was not able to parse ";  // CLI11's words for a name that is no option
        if (what.rfind(unknown, 0) == 0)
            what = "there is no option " + what.substr(unknown.size()) + "; --help lists all";
        throw user_error("--config %s: %s", app.get_config_ptr()->as<std::string>().c_str(), what.c_str());
    } catch (const CLI::ParseError& error) {
        throw user_error("%s; --help lists all options", error.what());
    }
    return true;
}
