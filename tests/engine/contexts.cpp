// What an engine does to its KV cache between steps, and the answers before and after: contexts TOOLS MODEL TEXT.
// Each case is compared with a context that never knew anything else. Prints every answer, for comparison with the plain
// engine.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "llama.h"
#include "symbol.h"

namespace {

struct Llama {
  explicit Llama(const std::string& folder) : ggml(folder + "/libggml.so"), llama(folder + "/libllama.so"), folder(folder) {}
  const Library ggml, llama;
  const std::string folder;

  decltype(llama_decode)* decode = SYMBOL(llama, llama_decode);
  decltype(llama_batch_init)* batch_init = SYMBOL(llama, llama_batch_init);
  decltype(llama_batch_free)* batch_free = SYMBOL(llama, llama_batch_free);
  decltype(llama_init_from_model)* new_context = SYMBOL(llama, llama_init_from_model);
  decltype(llama_context_default_params)* context_params = SYMBOL(llama, llama_context_default_params);
  decltype(llama_free)* free_context = SYMBOL(llama, llama_free);
  decltype(llama_get_logits_ith)* logits = SYMBOL(llama, llama_get_logits_ith);
  decltype(llama_get_memory)* memory = SYMBOL(llama, llama_get_memory);
  decltype(llama_memory_clear)* clear = SYMBOL(llama, llama_memory_clear);
  decltype(llama_memory_seq_rm)* remove = SYMBOL(llama, llama_memory_seq_rm);
  decltype(llama_memory_seq_cp)* copy = SYMBOL(llama, llama_memory_seq_cp);
  decltype(llama_memory_seq_add)* shift = SYMBOL(llama, llama_memory_seq_add);
  decltype(llama_state_get_size)* state_size = SYMBOL(llama, llama_state_get_size);
  decltype(llama_state_get_data)* state_get = SYMBOL(llama, llama_state_get_data);
  decltype(llama_state_set_data)* state_set = SYMBOL(llama, llama_state_set_data);
  decltype(llama_state_seq_get_size)* slot_size = SYMBOL(llama, llama_state_seq_get_size);
  decltype(llama_state_seq_get_data)* slot_get = SYMBOL(llama, llama_state_seq_get_data);
  decltype(llama_state_seq_set_data)* slot_set = SYMBOL(llama, llama_state_seq_set_data);
};

using Tokens = std::vector<llama_token>;
using Bytes = std::vector<uint8_t>;

struct Answer {
  Tokens tokens;
  std::vector<float> logits;  // of the last one
  bool operator==(const Answer&) const = default;
};

class Engine {
 public:
  Engine(const Llama& l, const std::string& model_path) : l(l) {
    SYMBOL(l.llama, llama_log_set)
    (
        [](ggml_log_level level, const char* text, void*) {
          if (level >= GGML_LOG_LEVEL_WARN && level <= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    SYMBOL(l.ggml, ggml_backend_load_all_from_path)(l.folder.c_str());
    model = SYMBOL(l.llama, llama_model_load_from_file)(model_path.c_str(), SYMBOL(l.llama, llama_model_default_params)());
    if (!model) std::exit(1);
    vocab = SYMBOL(l.llama, llama_model_get_vocab)(model);
    size = SYMBOL(l.llama, llama_vocab_n_tokens)(vocab);
  }
  Tokens tokenize(const std::string& text) const {
    Tokens tokens(text.size() + 8);
    const int count = SYMBOL(l.llama, llama_tokenize)(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                                                      static_cast<int>(tokens.size()), true, false);
    tokens.resize(static_cast<size_t>(std::max(count, 0)));
    return tokens;
  }
  const Llama& l;
  llama_model* model;
  const llama_vocab* vocab;
  int size;
};

void require(bool truth, const char* what) {
  if (truth) return;
  std::printf("FAILED  %s\n", what);
  std::exit(1);
}

// One context and how far each of its sequences has come.
class Context {
 public:
  Context(const Engine& engine, int sequences, bool unified) : e(engine), positions(static_cast<size_t>(sequences)) {
    llama_context_params params = e.l.context_params();
    params.n_ctx = static_cast<uint32_t>(1024 * sequences);
    params.n_batch = 512;
    params.n_ubatch = 512;
    params.n_seq_max = static_cast<uint32_t>(sequences);
    params.kv_unified = unified;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context = e.l.new_context(e.model, params);
    if (!context) std::exit(1);
    memory = e.l.memory(context);
  }
  Context(const Context&) = delete;
  ~Context() { e.l.free_context(context); }

  void read(llama_seq_id sequence, Tokens::const_iterator first, Tokens::const_iterator last) {
    while (first != last) {
      const auto count = std::min<std::ptrdiff_t>(last - first, 512);
      llama_batch batch = e.l.batch_init(static_cast<int32_t>(count), 0, 1);
      for (std::ptrdiff_t i = 0; i < count; ++i) add(batch, *first++, sequence, false);
      run(batch);
    }
  }
  // Greedy continuation of every sequence named, all of them in one batch a step. `tokens`: the last token of each.
  std::vector<Answer> answers(const std::vector<llama_seq_id>& sequences, Tokens tokens, int steps) {
    std::vector<Answer> result(sequences.size());
    for (int step = 0; step < steps; ++step) {
      llama_batch batch = e.l.batch_init(static_cast<int32_t>(sequences.size()), 0, 1);
      for (size_t i = 0; i < sequences.size(); ++i) add(batch, tokens[i], sequences[i], true);
      run(batch);
      for (size_t i = 0; i < sequences.size(); ++i) {
        const float* logits = e.l.logits(context, static_cast<int32_t>(i));
        tokens[i] = static_cast<llama_token>(std::max_element(logits, logits + e.size) - logits);
        result[i].tokens.push_back(tokens[i]);
        if (step + 1 == steps) result[i].logits.assign(logits, logits + e.size);
      }
    }
    return result;
  }
  Answer answer(llama_seq_id sequence, llama_token token, int steps) { return answers({sequence}, {token}, steps)[0]; }

  Bytes state() const {
    Bytes bytes(e.l.state_size(context));
    bytes.resize(e.l.state_get(context, bytes.data(), bytes.size()));
    return bytes;
  }
  void restore(const Bytes& bytes, const Context& from) {
    positions = from.positions;
    require(e.l.state_set(context, bytes.data(), bytes.size()) == bytes.size(), "a state was restored");
  }
  Bytes slot(llama_seq_id sequence) const {
    Bytes bytes(e.l.slot_size(context, sequence));
    bytes.resize(e.l.slot_get(context, bytes.data(), bytes.size(), sequence));
    return bytes;
  }
  void load_slot(const Bytes& bytes, llama_seq_id sequence, llama_pos position) {
    positions[static_cast<size_t>(sequence)] = position;
    require(e.l.slot_set(context, bytes.data(), bytes.size(), sequence) == bytes.size(), "a slot was loaded");
  }
  void cut(llama_seq_id sequence, llama_pos from) {
    e.l.remove(memory, sequence, from, -1);
    positions[static_cast<size_t>(sequence)] = from;
  }
  // Rows [from, to) go, the later ones move down.
  void shift(llama_seq_id sequence, llama_pos from, llama_pos to) {
    e.l.remove(memory, sequence, from, to);
    e.l.shift(memory, sequence, to, -1, from - to);
    positions[static_cast<size_t>(sequence)] -= to - from;
  }

  const Engine& e;
  llama_context* context;
  llama_memory_t memory;
  std::vector<llama_pos> positions;

 private:
  void add(llama_batch& batch, llama_token token, llama_seq_id sequence, bool logits) {
    const auto i = static_cast<size_t>(batch.n_tokens++);
    batch.token[i] = token;
    batch.pos[i] = positions[static_cast<size_t>(sequence)]++;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequence;
    batch.logits[i] = logits;
  }
  void run(llama_batch& batch) {
    const int status = e.l.decode(context, batch);
    e.l.batch_free(batch);
    require(status == 0, "llama_decode");
  }
};

int failures = 0;

void show(const char* name, const Answer& answer) {
  std::printf("answer %s:", name);
  for (llama_token token : answer.tokens) std::printf(" %d", token);
  std::printf("\n");
}

void same(const char* name, const Answer& answer, const Answer& fresh, bool bits = true) {
  float difference = 0;
  for (size_t i = 0; i < fresh.logits.size(); ++i)
    difference = std::max(difference, std::abs(answer.logits[i] - fresh.logits[i]));
  const bool equal = bits ? answer == fresh : answer.tokens == fresh.tokens;
  std::printf("%s%s (logits differ by %g)\n", equal ? "ok    " : "FAILED  ", name, difference);
  if (!equal) {
    ++failures;
    show("here ", answer);
    show("fresh", fresh);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  const Llama llama(arguments[1]);
  const Engine engine(llama, arguments[2]);
  std::ifstream file(arguments[3]);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Tokens tokens = engine.tokenize(text);
  const std::ptrdiff_t length = 500;
  const int steps = 12;
  const auto end = static_cast<llama_pos>(length - 1);
  if (std::ssize(tokens) < 2 * length + 1) return 2;
  const Tokens a(tokens.begin(), tokens.begin() + length), b(tokens.begin() + length, tokens.begin() + 2 * length);

  // Fresh: a context that never knew anything else. The last token of a text is the first of its answer's steps.
  Context alone_a(engine, 2, false), alone_b(engine, 2, false);
  alone_a.read(0, a.begin(), a.end() - 1);
  const Bytes state_a = alone_a.state(), slot_a = alone_a.slot(0);
  const auto positions_a = alone_a.positions;
  const Answer fresh_a = alone_a.answer(0, a.back(), steps);
  show("a", fresh_a);
  alone_b.read(0, b.begin(), b.end() - 1);
  const Bytes slot_b = alone_b.slot(0);
  const Answer fresh_b = alone_b.answer(0, b.back(), steps);
  show("b", fresh_b);

  {  // alone_b holds b and its answer, with codes
    Context start(engine, 2, false);
    start.positions = positions_a;
    alone_b.restore(state_a, start);
    same("state of a restored over b", alone_b.answer(0, a.back(), steps), fresh_a);
    alone_b.cut(0, 0);
    alone_b.load_slot(slot_b, 0, end);
    same("slot of b loaded over a", alone_b.answer(0, b.back(), steps), fresh_b);
    llama.clear(alone_b.memory, true);
    alone_b.load_slot(slot_a, 0, end);
    same("slot of a loaded after a clear", alone_b.answer(0, a.back(), steps), fresh_a);
  }
  {  // Two sequences at once, each with cells of its own. A batch of two is summed in another order than one of one, in the
     // plain engine as well; so the fresh answer is that of a sequence beside its own twin.
    const auto at_once = [&](const Bytes& first, llama_token first_token, const Bytes& second, llama_token second_token) {
      Context two(engine, 2, false);
      two.load_slot(first, 0, end);
      two.load_slot(second, 1, end);
      return two.answers({0, 1}, {first_token, second_token}, steps);
    };
    const auto twins_a = at_once(slot_a, a.back(), slot_a, a.back()), twins_b = at_once(slot_b, b.back(), slot_b, b.back());
    const auto both = at_once(slot_a, a.back(), slot_b, b.back());
    same("twins, second and first", twins_a[1], twins_a[0]);
    same("two sequences at once, first", both[0], twins_a[0]);
    same("two sequences at once, second", both[1], twins_b[1]);
    show("both, a", both[0]);
    show("both, b", both[1]);
  }
  {  // a sequence copied over another that had codes
    Context two(engine, 2, false);
    two.load_slot(slot_a, 0, end);
    two.load_slot(slot_b, 1, end);
    two.answer(1, b.back(), 4);
    two.cut(1, 0);
    llama.copy(two.memory, 0, 1, -1, -1);
    two.positions[1] = two.positions[0];
    same("a sequence copied over another", two.answer(1, a.back(), steps), fresh_a);
  }
  {  // Two sequences in the same cells. They share blocks, so at a small budget the selection may differ from that of either
     // alone; at full budget the answers are the plain engine's.
    Context shared(engine, 2, true);
    shared.read(0, a.begin(), a.end() - 1);
    shared.read(1, b.begin(), b.end() - 1);
    const auto both = shared.answers({0, 1}, {a.back(), b.back()}, steps);
    show("shared cells, a", both[0]);
    show("shared cells, b", both[1]);
  }
  {  // context shift: with codes from before, and without
    Context before(engine, 2, false), never(engine, 2, false);
    before.load_slot(slot_a, 0, end);
    never.load_slot(slot_a, 0, end);
    before.answer(0, a.back(), 4);
    before.cut(0, end);
    for (Context* context : {&before, &never}) context->shift(0, 64, 200);
    const Answer shifted = never.answer(0, a.back(), steps);
    show("shifted", shifted);
    same("context shifted after steps", before.answer(0, a.back(), steps), shifted);
  }
  {  // cells reused: the tail of a is cut, more of b comes in its place
    Context reused(engine, 2, false), fresh(engine, 2, false);
    reused.load_slot(slot_a, 0, end);
    fresh.load_slot(slot_a, 0, end);
    fresh.cut(0, 300);
    fresh.read(0, b.begin(), b.begin() + 299);
    const Answer other = fresh.answer(0, b[299], steps);
    show("reused", other);
    reused.answer(0, a.back(), 4);
    reused.cut(0, 300);
    reused.read(0, b.begin(), b.begin() + 299);
    same("cells cut and written again", reused.answer(0, b[299], steps), other);
  }
  return failures == 0 ? 0 : 1;
}
