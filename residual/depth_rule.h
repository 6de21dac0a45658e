// Rules that attend over depth (attnres, attnres_block, attnres_mls): which seam makes which source, which query it
// asks, and in what order groups are evaluated. The kernels are depth_attention.cuh's; a rule fills in one Site per
// seam.
#pragma once
#include "residual/depth_attention.cuh"
#include "residual/rule.h"

class DepthRule : public Rule {
  public:
    explicit DepthRule(const RuleShape& shape) : Rule(shape) {
        if (shape.C > 4096) throw user_error("--channels %d: attention over depth takes up to 4096 channels", shape.C);
    }
    void plan(Planner& planner) override;
    void ready(cudaStream_t stream) override;
    void begin(const Pass& pass) override;
    void forward(const Pass& pass, int s) override;
    void begin_backward(const Pass& pass) override;
    void backward(const Pass& pass, int s) override;
    void input_again(const Pass& pass, int s) override { norm_again(pass, s, x_[static_cast<size_t>(s)]); }
    void end_backward(const Pass& pass) override;
    floatX* embedding() override { return shape_.post(0) ? entry_ : x_[0]; }
    floatX* input(int s) override { return shape_.in(s) ? z_[static_cast<size_t>(s)] : x_[static_cast<size_t>(s)]; }
    const floatX* d_output(int s) override { return shape_.out(s) ? du_ : dx_; }
    const floatX* d_embedding() override { return dx_; }
    const floatX* stream(int s) override { return x_[static_cast<size_t>(s)]; }

  protected:
    struct Site {
        bool active = true;         // makes a source; otherwise the seam is vanilla's
        bool sums = false;          // the source is the sum of what stood before (running sum, or stream) and v
        bool complete = true;       // the source is finished here; otherwise it goes on at the next seam
        int slot = 0;               // of the source
        int query = 0;              // number of the query asked here, from 1; 0: none
        int older = 0;              // sources [0, older) are attended to by the group
        int piece = 0;              // this query's place in its group
        int piece_size = 0;         // > 0: the group begins here, with so many queries
        std::vector<int> near;      // seams whose sources the query attends to besides, the newest excepted
        std::vector<int> gathered;  // seams whose sources are gathered together, beginning (backwards) here
        int gather_place = 0;       // this source's place in its gathering
        std::vector<int>
            near_queries;  // queries that attend to this source and are not gathered, this seam's own excepted
    };
    std::vector<Site> sites_;            // (2L+1), by s
    std::vector<DepthWeights> weights_;  // (Q+1), by query; set by ready_weights()
    int first_weights_ = 0;              // 1: query 0 has no parameters
    float eps_ = 1e-6f;
    bool stream_ = false;  // behind a query the stream goes on from h (attnres_mls)

    // The options blocks and block_size, one of which may be given: how many of `units` make a block. Without either,
    // it follows from default_blocks, or if that is 0 it is default_size.
    static int block_size(RuleOptions& options, int units, int default_blocks, int default_size);
    // A query and its key gain for every sublayer, and for the head: what attnres and attnres_block declare.
    void add_sublayer_queries();
    // Fills weights_; the default takes add_sublayer_queries()'s, the query asked at seam j being sublayer j+1's.
    virtual void ready_weights();
    // The source is the sublayer's output as it lies there.
    bool source_is_u(int s) const { return s > 0 && !sites_[static_cast<size_t>(s)].sums && !shape_.out(s); }
    bool u_is_state() const override { return !sites_[1].sums && !shape_.out(1); }

  private:
    int queries() const { return sites_.back().query; }
    int coef_columns() const { return static_cast<int>(round_up(queries() + 1, 8)); }
    bool makes_source(int s) const { return sites_[static_cast<size_t>(s)].active; }
    int seam_of_query(int query) const;
    DepthSource source(int s) const;
    DepthQuery query(int number) const;

    std::vector<floatX*> x_;       // (2L+1) of (N,C): what the sublayer reads before its N_in; backward, its gradient
    std::vector<floatX*> stored_;  // (2L+1) of (N,C): sources that are not u itself
    std::vector<float*> r_, scores_, lse_, del_;  // by s: (N), (slots,N), (N), (N)
    floatX* entry_ = nullptr;                     // (N,C) the embedding before N_emb
    floatX* partial_ = nullptr;                   // (DEPTH_GROUP,N,C)
    float* partial_lse_ = nullptr;                // (DEPTH_GROUP,N)
    float* q_ = nullptr;                          // (Q+1,C)
    float* dq_ = nullptr;                         // (columns,C)
    floatX* coef_ = nullptr;                      // (DEPTH_GROUP,N,columns)
    floatX* gathered_ = nullptr;                  // (DEPTH_GROUP,N,C)
    floatX *dx_ = nullptr, *du_ = nullptr;
    DepthSource* source_table_ = nullptr;   // (slots) device, complete sources by slot
    DepthQuery* query_table_ = nullptr;     // (Q+1) device
    DepthWeights* weight_table_ = nullptr;  // (Q+1) device
};
