// Attention Residuals, full (Kimi Team 2026, arXiv 2603.15031): no stream; every sublayer attends over the outputs of
// all earlier ones, token by token, with a learned query:
//
//     v_0 = x_0,  v_k = u_k;      z_k = DA(w_k, gam_k; v_0..v_{k-1}),    x = DA(w_f, gam_f; v_0..v_2L) before the head
//     DA: r_i = 1/sqrt(mean(v_i^2) + 1e-6),  s_i = <w*gam, v_i*r_i>,  p = softmax(s),  h = SUM_i p_i*v_i
//     del = <dh,h>,  ds_i = p_i*(<dh,v_i> - del),  dv_i += p_i*dh + ds_i*r_i*(q - kh_i*s_i/C),  dq = SUM ds_i*kh_i
//
//     ar_query  [C], 0      one per sublayer, and final_ar_query; no decay. Zero: the plain mean of all sources.
//     ar_gain   [C], 1      one per sublayer, and final_ar_gain; no decay
//
// Queries go in groups of DEPTH_GROUP seams: together over all that is older than the group, then each over the few
// younger sources. Sources gather their gradients in the same groups. Kernels and order: depth_attention.cuh,
// depth_rule.h.
#include "residual/depth_rule.h"

namespace {

class AttnRes : public DepthRule {
  public:
    AttnRes(const RuleShape& shape, RuleOptions&) : DepthRule(shape) {
        add_sublayer_queries();

        const int last = shape.last();
        sites_.resize(static_cast<size_t>(last) + 1);
        sites_[0].gathered = {0};
        for (int s = 1; s <= last; s++) {
            Site& site = sites_[static_cast<size_t>(s)];
            const int first = s - (s - 1) % DEPTH_GROUP, end = std::min(first + DEPTH_GROUP - 1, last);
            site.slot = s;
            site.query = s;
            site.older = first;
            site.piece = s - first;
            if (s == first) site.piece_size = end - first + 1;
            for (int other = first; other < s; other++) site.near.push_back(other);
            if (s == end)
                for (int other = first; other <= end; other++) site.gathered.push_back(other);
            site.gather_place = s - first;
            for (int other = s + 1; other <= end; other++) site.near_queries.push_back(other);
        }
    }
};

}  // namespace

extern const RuleEntry attnres_rule = {"attnres", "each sublayer attends over all earlier outputs", PRE_SCHEMES,
                                       make_rule<AttnRes>};
