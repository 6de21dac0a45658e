#include "driver/load.h"

#include <cstdio>

#include "checkpoint/checkpoint.h"
#include "checkpoint/files.h"
#include "checkpoint/huggingface.h"
#include "eval/tasks.h"
#include "kernels/error.h"

LoadedModel load_model(const std::string& dir, int B) {
    LoadedModel loaded;
    std::vector<std::string> notes;
    loaded.folder = model_folder(dir, notes);
    const std::string path = loaded.folder + "/config.json";
    const ModelConfig config = config_from_json(read_text(path), path, notes);
    check_config(config);
    for (const std::string& note : notes) printf("note: %s\n", note.c_str());
    loaded.tokenizer = tokenizer_in(loaded.folder);
    if (!loaded.tokenizer && file_exists(join_path(loaded.folder, "tokenizer.json")))
        throw user_error(
            "%s: of its tokenizer only Hugging Face's tokenizer.json is there, which is not read here; copy the same "
            "tokenizer's vocab.json and merges.txt there, or the PREFIX_tokenizer.json of the training shards",
            loaded.folder.c_str());
    if (!loaded.tokenizer)
        throw user_error(
            "%s: no tokenizer beside the weights; copy the PREFIX_tokenizer.json of the training shards there, or "
            "GPT-2's vocab.json and merges.txt",
            loaded.folder.c_str());
    check_tokenizer(*loaded.tokenizer, config, loaded.folder);
    if (config.vocab >= loaded.tokenizer->vocab_size() + 256)  // more than padding
        printf("note: the model's vocabulary has %d tokens, the tokenizer beside it, '%s', %d\n", config.vocab,
               loaded.tokenizer->kind().c_str(), loaded.tokenizer->vocab_size());
    loaded.model = model_create(config, B, config.context, Use::inference);
    const Registry& registry = model_registry(*loaded.model);
    std::vector<float> weights(static_cast<size_t>(registry.arena));
    weights_read(loaded.folder, registry, weights.data());
    // A bf16 build rounds the weights as the run did after its last update, so that its numbers come out again.
    RunState state;
    if (file_exists(loaded.folder + "/state.json")) state = checkpoint_read_state(loaded.folder);
    model_write_master(*loaded.model, weights.data(), state.seed, static_cast<uint64_t>(state.last_change));
    return loaded;
}

TokenizerPtr training_tokenizer(const Loader& train, const Loader& val, const std::string& folder, std::string& file) {
    const std::string& first = train.corpora[0].shards[0].path;
    file = tokenizer_beside(first);
    TokenizerPtr tokenizer = file.empty() ? nullptr : tokenizer_load(file);
    TokenizerPtr own = folder.empty() ? nullptr : tokenizer_in(folder);
    if (own) check_shard_tokenizer(first, *own);
    if (!tokenizer) tokenizer = std::move(own);
    for (const Loader* loader : {&train, &val})
        for (const Corpus& corpus : loader->corpora)
            if (tokenizer && tokenizer_beside(corpus.shards[0].path) != file)
                check_shard_tokenizer(corpus.shards[0].path, *tokenizer);
    return tokenizer;
}
