// Norm schemes: which norms stand where, and the factors of the skip and of N_in.
#include "residual/scheme.h"

#include "kernels/error.h"
#include "residual/options.h"
#include "test.h"

namespace {

Scheme make(const std::string& name, int layers, const std::map<std::string, std::string>& given = {}) {
    RuleOptions options(given);
    Scheme scheme = make_scheme(name, layers, options);
    options.refuse_unread("vanilla", name);
    return scheme;
}

void check(const std::string& name, bool in, bool out, bool post) {
    for (int layers : {1, 3, 12}) {
        CAPTURE(name, layers);
        const Scheme scheme = make(name, layers);
        CHECK(scheme.name == name);
        CHECK(scheme.sublayers.size() == static_cast<size_t>(2 * layers));
        CHECK(scheme.final_norm);
        CHECK(scheme.embed_norm == (name == "peri"));
        CHECK(scheme.deepnorm_init == (name == "deepnorm"));
        for (const SublayerNorms& norms : scheme.sublayers) {
            CHECK(norms.in == in);
            CHECK(norms.out == out);
            CHECK(norms.post == post);
            if (name != "lns") CHECK(norms.in_scale == 1);
            CHECK(norms.in_init == 1);
            if (name != "deepnorm" && name != "keel") CHECK(norms.skip == 1);
        }
    }
}

}  // namespace

TEST_CASE("norm schemes: where norms stand", "[scheme]") {
    check("pre", true, false, false);
    check("lns", true, false, false);
    check("sandwich", true, true, false);
    check("peri", true, true, false);
    check("outnorm", false, true, false);
    check("post", false, false, true);
    check("deepnorm", false, false, true);
    check("keel", true, false, true);
}

TEST_CASE("norm schemes: mix is post in the first quarter", "[scheme]") {
    for (auto [layers, post] : {std::pair{1, 0}, {3, 0}, {4, 1}, {7, 1}, {8, 2}, {12, 3}, {24, 6}}) {
        const Scheme scheme = make("mix", layers);
        for (int k = 0; k < 2 * layers; k++) {
            CAPTURE(layers, k);
            const SublayerNorms& norms = scheme.sublayers[static_cast<size_t>(k)];
            CHECK(norms.post == (k < 2 * post));
            CHECK(norms.in == (k >= 2 * post));
            CHECK(!norms.out);
            CHECK(norms.skip == 1);
        }
    }
}

TEST_CASE("norm schemes: factors", "[scheme]") {
    // (2L)^(1/4), printed with five digits in the literature; 2L.
    for (auto [layers, alpha] : {std::pair{2, std::sqrt(2.0)}, {8, 2.0}, {12, 2.2134}, {24, 2.6321}, {32, 2.8284}})
        for (const SublayerNorms& norms : make("deepnorm", layers).sublayers) CHECK(std::fabs(norms.skip - alpha) < 5e-5);
    for (int layers : {1, 12, 24})
        for (const SublayerNorms& norms : make("keel", layers).sublayers) CHECK(norms.skip == 2.0f * static_cast<float>(layers));
    const Scheme forward = make("lns", 9), gains = make("lns", 9, {{"lns", "gaininit"}});
    for (int l = 1; l <= 9; l++) {
        for (int k : {2 * l - 2, 2 * l - 1}) {  // both sublayers of layer l
            CAPTURE(l, k);
            const double factor = 1 / std::sqrt(static_cast<double>(l));
            CHECK(std::fabs(forward.sublayers[static_cast<size_t>(k)].in_scale - factor) < 1e-7);
            CHECK(forward.sublayers[static_cast<size_t>(k)].in_init == 1);
            CHECK(gains.sublayers[static_cast<size_t>(k)].in_scale == 1);
            CHECK(std::fabs(gains.sublayers[static_cast<size_t>(k)].in_init - factor) < 1e-7);
        }
    }
}

TEST_CASE("norm schemes: options", "[scheme]") {
    CHECK(!make("post", 2, {{"final_norm", "0"}}).final_norm);
    CHECK(!make("deepnorm", 2, {{"deepnorm_init", "0"}}).deepnorm_init);
    CHECK_THROWS_AS(make("post", 2, {{"deepnorm_init", "0"}}), UserError);
    CHECK_THROWS_AS(make("pre", 2, {{"lns", "gaininit"}}), UserError);
    CHECK_THROWS_AS(make("lns", 2, {{"lns", "backward"}}), UserError);
    CHECK_THROWS_AS(make("batchnorm", 2), UserError);
    CHECK(is_scheme("peri"));
    CHECK(!is_scheme("vanilla"));
    for (const char* key : {"final_norm", "deepnorm_init", "lns"}) CHECK(is_scheme_option(key));
    CHECK(!is_scheme_option("T"));
}
