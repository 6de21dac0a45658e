// Norm schemes: which norms stand around each sublayer, and the factor of the skip.
//
//     pre       x <- x + F(N(x))                            Xiong et al. 2020, arXiv 2002.04745
//     post      x <- N(x + F(x))                            Vaswani et al. 2017
//     sandwich  x <- x + N_out(F(N_in(x)))                  Ding et al. 2021, arXiv 2105.13290
//     peri      sandwich, and x_0 <- N_emb(x_0)             Kim et al. 2025, arXiv 2502.02732
//     deepnorm  x <- N(alpha*x + F(x)), alpha = (2L)^(1/4)  Wang et al. 2022, arXiv 2203.00555
//     mix       post in the first floor(L/4) layers, then pre   Li et al. 2025, arXiv 2412.13795
//     lns       x <- x + F(N(x)/sqrt(l))                    Sun et al. 2025, arXiv 2502.05795
//     keel      x <- N_post(2L*x + F(N_in(x)))              Chen & Wei 2026, arXiv 2601.19895
//     outnorm   x <- x + N(F(x))                            OLMo 2, arXiv 2501.00656
//
// All are followed by N_f before the head, unless the option final_norm=0 takes it away.
#pragma once
#include <string>
#include <vector>

struct SublayerNorms {
    bool in = false, out = false, post = false;
    float skip = 1.0f;      // a
    float in_scale = 1.0f;  // c, the fixed factor behind N_in
    float in_init = 1.0f;   // where the gain of N_in starts (lns=gaininit)
};

struct Scheme {
    std::string name;
    std::vector<SublayerNorms> sublayers;  // 2L
    bool embed_norm = false, final_norm = true;
    bool deepnorm_init = false;  // beta = (8L)^(-1/4) for value, output and MLP matrices
};

bool is_scheme(const std::string& name);
std::string scheme_names();  // for messages

class RuleOptions;
bool is_scheme_option(const std::string& key);
// UserError for an unknown scheme. Reads the options lns, deepnorm_init, final_norm.
Scheme make_scheme(const std::string& name, int layers, RuleOptions& options);
