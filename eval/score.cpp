#include "eval/score.h"

#include <algorithm>
#include <numeric>

#include "eval/text.h"
#include "kernels/error.h"
#include "model/model.h"

Request make_request(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation, int T) {
    const size_t kept = context.size() - trailing_space(context);
    std::vector<int> before = tokenizer.encode(std::string_view(context).substr(0, kept));
    Request request;
    request.tokens = tokenizer.encode(context + continuation);
    std::vector<int>& tokens = request.tokens;
    if (kept == 0) {  // the first token of the text stands there itself if it is the end of another
        if (tokens.empty() || tokens[0] != tokenizer.eot()) tokens.insert(tokens.begin(), tokenizer.eot());
        before = {tokenizer.eot()};
    }
    const int64_t total = static_cast<int64_t>(tokens.size()), scored = total - static_cast<int64_t>(before.size());
    request.fits = scored >= 1 && scored <= T;
    if (!request.fits) return request;
    request.scored = static_cast<int>(scored);
    request.truncated = total > T + 1;
    if (request.truncated) tokens.erase(tokens.begin(), tokens.end() - (T + 1));
    return request;
}

std::vector<Likelihood> score(Model& model, const std::vector<Request>& requests, int B, int T, Comm* comm) {
    std::vector<size_t> order(requests.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return requests[a].tokens.size() > requests[b].tokens.size(); });
    const size_t room = static_cast<size_t>(B) * static_cast<size_t>(T);
    std::vector<double> results(2 * requests.size(), 0.0);  // log-likelihood and greedy of each
    std::vector<int> inputs(room), targets(room);
    std::vector<float> losses(room);
    std::vector<unsigned char> greedy(room);
    int64_t batch = 0;
    for (size_t first = 0; first < order.size(); batch++) {
        const size_t longest = requests[order[first]].tokens.size() - 1;
        const size_t t =
            std::min(static_cast<size_t>(round_up(static_cast<int64_t>(longest), 16)), static_cast<size_t>(T));
        const size_t rows = std::min(room / t, order.size() - first), start = first;
        first += rows;
        if (!my_turn(comm, batch)) continue;
        std::fill_n(inputs.begin(), rows * t, 0);
        std::fill_n(targets.begin(), rows * t, -1);
        for (size_t r = 0; r < rows; r++) {
            const Request& request = requests[order[start + r]];
            const size_t n = request.tokens.size() - 1, scored = static_cast<size_t>(request.scored);
            std::copy_n(request.tokens.begin(), n, inputs.begin() + static_cast<std::ptrdiff_t>(r * t));
            for (size_t i = n - scored; i < n; i++) targets[r * t + i] = request.tokens[i + 1];
        }
        model_token_losses(model, inputs.data(), targets.data(), static_cast<int>(rows), static_cast<int>(t),
                           losses.data(), greedy.data());
        for (size_t r = 0; r < rows; r++) {
            const Request& request = requests[order[start + r]];
            const size_t n = request.tokens.size() - 1, scored = static_cast<size_t>(request.scored);
            double sum = 0;
            bool all = true;
            for (size_t i = r * t + n - scored; i < r * t + n; i++) {
                sum -= static_cast<double>(losses[i]);
                all = all && greedy[i] != 0;
            }
            results[2 * order[start + r]] = sum;
            results[2 * order[start + r] + 1] = all;
        }
    }
    share_results(comm, results);
    std::vector<Likelihood> likelihoods;
    for (size_t i = 0; i < requests.size(); i++) likelihoods.push_back({results[2 * i], results[2 * i + 1] != 0});
    return likelihoods;
}

bool my_turn(const Comm* comm, int64_t batch) {
    return comm == nullptr || batch % comm_size(comm) == comm_rank(comm);
}

void share_results(Comm* comm, std::vector<double>& results) {
    if (comm != nullptr) comm_sum(comm, results.data(), static_cast<int>(results.size()));
}
