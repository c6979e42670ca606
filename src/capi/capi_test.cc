// Bad input through the C ABI: a status and a sentence, never a crash.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "adamas/adamas.h"

namespace {

constexpr int64_t extremes[] = {INT64_MIN, INT32_MIN, -1, INT32_MAX, int64_t{1} << 31, int64_t{1} << 62, INT64_MAX};

adamas_config config_of(std::initializer_list<std::pair<const char*, const char*>> settings = {}) {
  adamas_config config;
  EXPECT_EQ(adamas_config_init(&config), ADAMAS_OK);
  for (auto [name, value] : settings) EXPECT_EQ(adamas_config_set(&config, name, value), ADAMAS_OK) << adamas_last_error();
  return config;
}

void expect_sentence(adamas_status status, adamas_status expected, const std::string& part) {
  EXPECT_EQ(status, expected) << adamas_last_error();
  EXPECT_NE(std::string(adamas_last_error()).find(part), std::string::npos) << adamas_last_error();
}

struct Objects {
  Objects(const Objects&) = delete;
  Objects() {
    config = config_of({{"min_context", "0"}});
    cache_params = {sizeof cache_params, 0, 2, 64, 2, 256, 0, ADAMAS_DEVICE_CPU, 0, 0, nullptr, 0};
    plan_params = {sizeof plan_params, 4, 2, 64, 256, 2, ADAMAS_DEVICE_CPU, 0};
    EXPECT_EQ(adamas_cache_create(&config, &cache_params, &cache), ADAMAS_OK);
    EXPECT_EQ(adamas_plan_create(&config, &plan_params, &plan), ADAMAS_OK);
    rows = {memory.data(), ADAMAS_F32, 2 * 64 * 256 * 4, 64 * 256 * 4, 64 * 4, nullptr, 0};
    p.struct_size = sizeof p;
    p.threads = 1;
    p.batch = p.rows = 1;
    p.lengths = &length;
    p.q = q.data();
    p.q_stride_head = p.out_stride_head = 64 * 4;
    p.k = p.v = rows;
    p.out = out.data();
  }
  ~Objects() {
    adamas_plan_destroy(plan);
    adamas_cache_destroy(cache);
  }
  adamas_config config;
  adamas_cache_params cache_params;
  adamas_plan_params plan_params;
  adamas_cache* cache = nullptr;
  adamas_plan* plan = nullptr;
  std::vector<float> memory = std::vector<float>(2 * 2 * 64 * 256, 1.0f), q = std::vector<float>(4 * 64, 1.0f),
                     out = std::vector<float>(4 * 64);
  int64_t length = 256;
  adamas_rows rows;
  adamas_step_params p{};
};

TEST(Settings, AreSetByNameAndReadBack) {
  adamas_config config = config_of();
  char text[32];
  for (int32_t i = 0; i < adamas_setting_count(); i++) {
    adamas_setting setting;
    ASSERT_EQ(adamas_setting_describe(i, &setting), ADAMAS_OK);
    ASSERT_EQ(adamas_config_get(&config, setting.name, text, sizeof text), ADAMAS_OK);
    EXPECT_EQ(adamas_config_set(&config, setting.name, text), ADAMAS_OK) << setting.name;
    expect_sentence(adamas_config_set(&config, setting.name, "nan"), ADAMAS_INVALID_ARGUMENT, setting.range);
  }
  EXPECT_EQ(adamas_config_set(&config, "preset", "paper"), ADAMAS_OK);
  EXPECT_EQ(config.estimator, ADAMAS_ESTIMATOR_MANHATTAN);
  EXPECT_EQ(config.dense_layers, 2);
  EXPECT_EQ(config.sinks, 0);
}

TEST(Settings, HostileValuesGetTheRange) {
  adamas_config config = config_of();
  for (const char* value : {"-1", "0", "1e99", "nan", "", " 5", "5 ", "0x10", "99999999999999999999", "2147483648", "12a"})
    expect_sentence(adamas_config_set(&config, "budget", value), ADAMAS_INVALID_ARGUMENT, "1 to 2147483647");
  expect_sentence(adamas_config_set(&config, "bugdet", "5"), ADAMAS_INVALID_ARGUMENT, "budget");
  config.budget = 3;
  expect_sentence(adamas_config_check(&config), ADAMAS_INVALID_ARGUMENT, "sinks + recent");
  config = config_of();
  config.policy = 77;
  expect_sentence(adamas_config_check(&config), ADAMAS_INVALID_ARGUMENT, "streaming");
  char tiny[2];
  expect_sentence(adamas_config_get(&config, "budget", tiny, 2), ADAMAS_OUT_OF_RANGE, "5 bytes");
}

TEST(Settings, ComeFromTheEnvironmentAllOrNothing) {
  adamas_config config = config_of();
  setenv("ADAMAS_BUDGET", "64", 1);
  setenv("ADAMAS_PRESET", "paper", 1);
  setenv("ADAMAS_SINKS", "2", 1);
  EXPECT_EQ(adamas_config_from_environment(&config), ADAMAS_OK);
  EXPECT_EQ(config.budget, 64);
  EXPECT_EQ(config.sinks, 2) << "a variable wins over the preset";
  setenv("ADAMAS_POLICY", "best", 1);
  setenv("ADAMAS_BUDGET", "65", 1);
  expect_sentence(adamas_config_from_environment(&config), ADAMAS_INVALID_ARGUMENT, "ADAMAS_POLICY");
  EXPECT_EQ(config.budget, 64);
  for (const char* name : {"ADAMAS_BUDGET", "ADAMAS_PRESET", "ADAMAS_SINKS", "ADAMAS_POLICY"}) unsetenv(name);
  setenv("ADAMAS_DEVICE", "avx2", 1);  // of version 0.1
  expect_sentence(adamas_config_from_environment(&config), ADAMAS_INVALID_ARGUMENT, "ADAMAS_ISA");
  unsetenv("ADAMAS_DEVICE");
}

TEST(Settings, ComeFromVariablesOfAProgram) {
  using Variables = std::map<std::string, const char*>;
  const auto get = [](void* user, const char* name) -> const char* {
    const auto& all = *static_cast<const Variables*>(user);
    const auto found = all.find(name);
    return found != all.end() ? found->second : nullptr;
  };
  setenv("ADAMAS_BUDGET", "nothing that is read", 1);
  adamas_config config = config_of();
  Variables variables{{"ADAMAS_PRESET", "paper"}, {"ADAMAS_SINKS", "2"}};
  EXPECT_EQ(adamas_config_from_variables(&config, get, &variables), ADAMAS_OK) << adamas_last_error();
  EXPECT_EQ(config.estimator, ADAMAS_ESTIMATOR_MANHATTAN);
  EXPECT_EQ(config.sinks, 2);
  unsetenv("ADAMAS_BUDGET");
  for (auto [name, value] : {std::pair{"ADAMAS_SINKS", "-1"},
                             {"ADAMAS_DEVICE", "avx2"},
                             {"ADAMAS_TAIL", "0"},
                             {"ADAMAS_CONFIG", "/nowhere"},
                             {"ADAMAS_ISA", "AVX9"}}) {
    variables = {{name, value}, {"ADAMAS_RECENT", "9"}};
    EXPECT_EQ(adamas_config_from_variables(&config, get, &variables), ADAMAS_INVALID_ARGUMENT) << name;
    EXPECT_EQ(config.recent, 0) << name;
  }
  expect_sentence(adamas_config_from_variables(&config, nullptr, nullptr), ADAMAS_INVALID_ARGUMENT, "get");
}

// A settings file: general lines, sections of layers, and a sentence with the line for everything else.
TEST(Settings, AFileSetsThemForAllLayersOrSome) {
  const std::string path = ::testing::TempDir() + "adamas_settings.conf";
  const auto write = [&](const char* text) {
    std::FILE* file = std::fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    std::fputs(text, file);
    std::fclose(file);
  };
  write(
      "# made by hand\nbudget = 96   # general\n share=0.001\r\n\n[layers 0,3-5]\nbudget = 256\nmax_noise = 2.5\n[layers "
      "7]\npolicy = full\n");
  adamas_config config = config_of({});
  ASSERT_EQ(adamas_config_load(&config, path.c_str(), -1), ADAMAS_OK) << adamas_last_error();
  EXPECT_EQ(config.budget, 96);
  EXPECT_EQ(config.share, 0.001);
  EXPECT_EQ(config.max_noise, 8);
  for (int layer : {0, 3, 5}) {
    adamas_config of_layer = config;
    ASSERT_EQ(adamas_config_load(&of_layer, path.c_str(), layer), ADAMAS_OK);
    EXPECT_EQ(of_layer.budget, 256) << layer;
    EXPECT_EQ(of_layer.max_noise, 2.5) << layer;
  }
  for (int layer : {1, 2, 6, 7}) {
    adamas_config of_layer = config;
    ASSERT_EQ(adamas_config_load(&of_layer, path.c_str(), layer), ADAMAS_OK);
    EXPECT_EQ(of_layer.budget, 96) << layer;
    EXPECT_EQ(of_layer.policy, layer == 7 ? ADAMAS_POLICY_FULL : ADAMAS_POLICY_ADAMAS) << layer;
  }
  setenv("ADAMAS_CONFIG", path.c_str(), 1);
  setenv("ADAMAS_SHARE", "0.002", 1);
  ASSERT_EQ(adamas_config_from_environment(&config), ADAMAS_OK) << adamas_last_error();
  EXPECT_EQ(config.budget, 96);
  EXPECT_EQ(config.share, 0.002) << "a variable wins over the file";
  unsetenv("ADAMAS_SHARE");
  for (const char* gone : {"ADAMAS_SKETCH", "ADAMAS_TAIL", "ADAMAS_RERANK"}) {
    setenv(gone, "0", 1);
    expect_sentence(adamas_config_from_environment(&config), ADAMAS_INVALID_ARGUMENT, "no setting any more: budget = auto");
    unsetenv(gone);
  }
  for (auto [text, sentence] : {std::pair{"budget 5", "line 1"},
                                {"\nbudgte = 5", "budgte"},
                                {"budget = 0", "range"},
                                {"[layer 3]", "section"},
                                {"[layers 3-]", "section"},
                                {"[layers 5-3]", "section"},
                                {"[layers 1]\nmin_context = 3", "whole model"},
                                {"[layers 9]\nbudget = -1", "line 2"},
                                {"tail = 0", "block means"},
                                {"share = 0", "range"},
                                {"budget = 2", "sinks"}}) {
    write(text);
    expect_sentence(adamas_config_from_environment(&config), ADAMAS_INVALID_ARGUMENT, sentence);
  }
  unsetenv("ADAMAS_CONFIG");
  expect_sentence(adamas_config_load(&config, "/nowhere/at/all", -1), ADAMAS_INVALID_ARGUMENT, "cannot be read");
  EXPECT_EQ(config.budget, 96) << "unchanged by what went wrong";
  std::remove(path.c_str());
}

TEST(BadInput, NullsAndWrongSizes) {
  Objects o;
  expect_sentence(adamas_config_init(nullptr), ADAMAS_INVALID_ARGUMENT, "NULL");
  adamas_cache* none = nullptr;
  expect_sentence(adamas_cache_create(nullptr, &o.cache_params, &none), ADAMAS_INVALID_ARGUMENT, "NULL");
  expect_sentence(adamas_cache_create(&o.config, nullptr, &none), ADAMAS_INVALID_ARGUMENT, "NULL");
  expect_sentence(adamas_cache_create(&o.config, &o.cache_params, nullptr), ADAMAS_INVALID_ARGUMENT, "NULL");
  o.cache_params.struct_size = 4;
  expect_sentence(adamas_cache_create(&o.config, &o.cache_params, &none), ADAMAS_INVALID_ARGUMENT, "struct_size");
  expect_sentence(adamas_append(nullptr, 0, 0, 1, nullptr, nullptr), ADAMAS_INVALID_ARGUMENT, "NULL");
  expect_sentence(adamas_step(nullptr, nullptr, nullptr), ADAMAS_INVALID_ARGUMENT, "NULL");
  expect_sentence(adamas_step(o.plan, o.cache, nullptr), ADAMAS_INVALID_ARGUMENT, "NULL");
  for (auto clear : {+[](adamas_step_params& p) { p.q = nullptr; }, +[](adamas_step_params& p) { p.out = nullptr; },
                     +[](adamas_step_params& p) { p.k.data = nullptr; }, +[](adamas_step_params& p) { p.v.data = nullptr; },
                     +[](adamas_step_params& p) { p.struct_size = 0; }}) {
    adamas_step_params p = o.p;
    clear(p);
    EXPECT_EQ(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT);
  }
  adamas_step_times times{};
  o.p.times = &times;
  expect_sentence(adamas_step(o.plan, o.cache, &o.p), ADAMAS_INVALID_ARGUMENT, "adamas_step_times.struct_size is 0");
  adamas_cache_destroy(nullptr);
  adamas_plan_destroy(nullptr);
}

// What only a door reads makes no cache and plan strangers; what a step reads does.
TEST(Settings, CacheAndPlanCompareWhatConcernsAStep) {
  const std::pair<const char*, const char*> all[] = {
      {"stats", "1"},       {"rows", "all"},    {"share", "0.001"}, {"budget", "64"}, {"estimator", "manhattan"},
      {"min_mass", "0.5"},  {"max_noise", "1"}, {"sinks", "2"},     {"recent", "3"},  {"dense_layers", "1"},
      {"min_context", "7"}, {"policy", "quest"}};
  for (auto [name, value] : all) {
    Objects o;
    const adamas_config other = config_of({{"min_context", "0"}, {name, value}});
    adamas_plan* plan = nullptr;
    ASSERT_EQ(adamas_plan_create(&other, &o.plan_params, &plan), ADAMAS_OK);
    const bool of_a_door = std::string(name) == "stats" || std::string(name) == "rows";
    if (of_a_door)
      EXPECT_EQ(adamas_step(plan, o.cache, &o.p), ADAMAS_OK) << adamas_last_error();
    else
      expect_sentence(adamas_step(plan, o.cache, &o.p), ADAMAS_INVALID_ARGUMENT, "different settings");
    adamas_plan_destroy(plan);
  }
}

TEST(BadInput, ExtremeNumbersAreRefusedBeforeAnythingWraps) {
  Objects o;
  for (int64_t x : extremes) {
    SCOPED_TRACE(x);
    adamas_cache* cache = nullptr;
    adamas_plan* plan = nullptr;
    adamas_cache_params c = o.cache_params;
    c.capacity = x;
    if (x != INT32_MAX) {
      EXPECT_NE(adamas_cache_create(&o.config, &c, &cache), ADAMAS_OK);
    }
    c = o.cache_params;
    c.sequences = x;
    EXPECT_NE(adamas_cache_create(&o.config, &c, &cache), ADAMAS_OK);
    adamas_plan_params q = o.plan_params;
    if (x != INT32_MAX) {
      q.max_tokens = x;
      EXPECT_NE(adamas_plan_create(&o.config, &q, &plan), ADAMAS_OK);
    }
    q = o.plan_params;
    q.max_threads = int32_t(x);
    EXPECT_NE(adamas_plan_create(&o.config, &q, &plan), ADAMAS_OK);
    EXPECT_NE(adamas_append(o.cache, x, 0, 1, nullptr, nullptr), ADAMAS_OK);
    EXPECT_NE(adamas_append(o.cache, 0, x, 1, nullptr, nullptr), ADAMAS_OK);
    EXPECT_NE(adamas_append(o.cache, 0, 0, x, nullptr, nullptr), ADAMAS_OK);
    EXPECT_NE(adamas_append(o.cache, 0, 1, x, nullptr, nullptr), ADAMAS_OK);
    EXPECT_NE(adamas_truncate(o.cache, 0, x), ADAMAS_OK);
    for (int64_t adamas_step_params::*field :
         {&adamas_step_params::batch, &adamas_step_params::rows, &adamas_step_params::verify_rows}) {
      adamas_step_params p = o.p;
      p.*field = x;
      if (x > INT32_MAX || x < 0 || field == &adamas_step_params::batch) {
        p.q_stride_row = p.out_stride_row = 1 << 20;
        EXPECT_NE(adamas_step(o.plan, o.cache, &p), ADAMAS_OK);
      }
    }
    adamas_step_params p = o.p;
    p.lengths = &x;
    EXPECT_NE(adamas_step(o.plan, o.cache, &p), ADAMAS_OK);
    p = o.p;
    p.sequences = &x;
    EXPECT_NE(adamas_step(o.plan, o.cache, &p), ADAMAS_OK);
    if (x == INT64_MIN || x > INT32_MAX + int64_t{1}) {
      p = o.p;
      p.k.stride_token = x;
      EXPECT_NE(adamas_step(o.plan, o.cache, &p), ADAMAS_OK);
    }
  }
}

TEST(BadInput, ShapesThatAreNotServedSayWhichAre) {
  Objects o;
  adamas_cache* cache = nullptr;
  adamas_plan* plan = nullptr;
  for (int32_t head_dim : {0, -64, 1, 63, 97, 512, INT32_MAX}) {
    adamas_cache_params c = o.cache_params;
    c.head_dim = head_dim;
    expect_sentence(adamas_cache_create(&o.config, &c, &cache), ADAMAS_UNSUPPORTED, "64, 80, 96, 112, 128, 192, 256");
  }
  adamas_plan_params q = o.plan_params;
  q.q_heads = 5;
  expect_sentence(adamas_plan_create(&o.config, &q, &plan), ADAMAS_INVALID_ARGUMENT, "multiple");
  q = o.plan_params;
  q.kv_heads = 0;
  expect_sentence(adamas_plan_create(&o.config, &q, &plan), ADAMAS_INVALID_ARGUMENT, "kv_heads");
  q = o.plan_params;
  q.head_dim = 128;
  ASSERT_EQ(adamas_plan_create(&o.config, &q, &plan), ADAMAS_OK);
  expect_sentence(adamas_step(plan, o.cache, &o.p), ADAMAS_INVALID_ARGUMENT, "head");
  adamas_plan_destroy(plan);
  const adamas_config other = config_of({{"budget", "7"}});
  ASSERT_EQ(adamas_plan_create(&other, &o.plan_params, &plan), ADAMAS_OK);
  expect_sentence(adamas_step(plan, o.cache, &o.p), ADAMAS_INVALID_ARGUMENT, "settings");
  adamas_plan_destroy(plan);
  for (float bad : {-1.0f, NAN, INFINITY}) {
    adamas_step_params p = o.p;
    p.scale = bad;
    expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "scale");
    p = o.p;
    p.softcap = bad;
    expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "softcap");
    p = o.p;
    p.k_scale = bad;
    expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "k_scale");
    p = o.p;
    p.v_scale = bad;
    expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "v_scale");
  }
  adamas_step_params p = o.p;
  for (int32_t dtype : {-1, adamas_dtype_count(), INT32_MAX}) {
    p.k.dtype = dtype;
    expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "f32 (0), f16 (1), bf16 (2), q8_0 (3)");
  }
  p = o.p;
  p.q_dtype = ADAMAS_Q8_0;
  expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT,
                  "q: dtype 3; there are f32 (0), f16 (1), bf16 (2)");
  p = o.p;
  p.mask = o.memory.data();
  p.mask_dtype = ADAMAS_Q4_0;
  expect_sentence(adamas_step(o.plan, o.cache, &p), ADAMAS_INVALID_ARGUMENT, "mask: dtype 6");
  for (int64_t rotated : {-1, 2, INT32_MAX}) {
    adamas_cache_params c = o.cache_params;
    c.rotated = rotated;
    expect_sentence(adamas_cache_create(&o.config, &c, &cache), ADAMAS_INVALID_ARGUMENT, "rotated");
  }
  expect_sentence(adamas_isa_force("SSE9"), ADAMAS_INVALID_ARGUMENT, "SSE9");
  int64_t count = 0;
  ASSERT_EQ(adamas_step(o.plan, o.cache, &o.p), ADAMAS_OK) << adamas_last_error();
  int64_t one = -1;
  expect_sentence(adamas_selection(o.plan, 0, &one, 1, &count), ADAMAS_OUT_OF_RANGE, "room");
  EXPECT_EQ(count, 256) << "of 256 tokens that weigh the same each may matter";
  expect_sentence(adamas_selection(o.plan, 4, &one, 1, &count), ADAMAS_INVALID_ARGUMENT, "q_head");
}

TEST(BadInput, QuantisedRowsNeedWholeBlocks) {
  Objects o;
  adamas_cache_params c = o.cache_params;
  c.head_dim = 80;
  adamas_cache* cache = nullptr;
  ASSERT_EQ(adamas_cache_create(&o.config, &c, &cache), ADAMAS_OK);
  adamas_rows rows = o.rows;
  for (int32_t dtype = ADAMAS_Q8_0; dtype <= ADAMAS_IQ4_NL; dtype++) {
    rows.dtype = dtype;
    expect_sentence(adamas_append(cache, 0, 0, 1, &rows, nullptr), ADAMAS_UNSUPPORTED,
                    "head_dim 80 in " + std::string(adamas_dtype_name(dtype)));
  }
  adamas_cache_destroy(cache);
  EXPECT_STREQ(adamas_dtype_name(-1), "");
  EXPECT_STREQ(adamas_dtype_name(adamas_dtype_count()), "");
}

// The newest rows of a batch: as rows that are appended, and cut, one sequence after the other.
TEST(Append, RowsOfABatchAreAppendedAndEndTheirSequences) {
  Objects batch, single;
  for (size_t i = 0; i < batch.memory.size(); i++) batch.memory[i] = float((i * 7919) % 101) - 50;
  single.memory = batch.memory;
  const auto bytes_of = [](const adamas_cache* cache, int64_t sequence, int64_t block) {
    size_t size = 0;
    EXPECT_EQ(adamas_block_bytes(cache, sequence, 1, block, nullptr, 0, &size), ADAMAS_OK);
    std::vector<char> bytes(size);
    EXPECT_EQ(adamas_block_bytes(cache, sequence, 1, block, bytes.data(), size, nullptr), ADAMAS_OK);
    return bytes;
  };
  const auto append = [&](std::vector<int64_t> lengths, int64_t rows) {
    adamas_append_params p{sizeof p, 2, rows, nullptr, lengths.data(), batch.rows, batch.rows, nullptr};
    p.k.data = p.v.data = batch.memory.data();
    return adamas_append_rows(batch.cache, &p);
  };
  single.rows.data = single.memory.data();
  ASSERT_EQ(append({100, 70}, 128), ADAMAS_OK);  // as many as there are
  ASSERT_EQ(append({103, 72}, 3), ADAMAS_OK);
  ASSERT_EQ(append({101, 72}, 1), ADAMAS_OK);  // two of the first sequence's are taken back
  for (const auto& [sequence, length] : {std::pair{0, 101}, {1, 72}}) {
    ASSERT_EQ(adamas_append(single.cache, sequence, 0, length, &single.rows, &single.rows), ADAMAS_OK);
    for (const int64_t block : {0, 1})
      EXPECT_EQ(bytes_of(batch.cache, sequence, block), bytes_of(single.cache, sequence, block));
  }
  expect_sentence(append({101, 257}, 1), ADAMAS_INVALID_ARGUMENT, "length");
  expect_sentence(append({101, -1}, 1), ADAMAS_INVALID_ARGUMENT, "length");
  expect_sentence(adamas_append_rows(batch.cache, nullptr), ADAMAS_INVALID_ARGUMENT, "adamas_append_params");
}

TEST(Gpu, IsThereOrSaysWhyNot) {
  Objects o;
  size_t bytes = 1;
  EXPECT_EQ(adamas_plan_workspace(o.plan, &bytes), ADAMAS_OK);
  EXPECT_EQ(bytes, 0u);
  EXPECT_STREQ(adamas_gpu_name(adamas_gpu_count()), "");
  if (adamas_gpu_count() > 0) return;
  EXPECT_STRNE(adamas_gpu_reason(), "");
  adamas_cache* cache = nullptr;
  o.cache_params.device = ADAMAS_DEVICE_CUDA;
  expect_sentence(adamas_cache_create(&o.config, &o.cache_params, &cache), ADAMAS_UNSUPPORTED, "cuda");
  EXPECT_EQ(cache, nullptr);
}

TEST(BadInput, MoreMemoryThanThereIsIsAStatus) {
  Objects o;
  adamas_cache_params c = o.cache_params;
  c.capacity = INT32_MAX;
  c.sequences = 1 << 20;
  adamas_cache* cache = nullptr;
  expect_sentence(adamas_cache_create(&o.config, &c, &cache), ADAMAS_OUT_OF_MEMORY, "memory");
  EXPECT_EQ(cache, nullptr);
}

TEST(BadInput, SingleStagesGetASentence) {
  Objects o;
  std::vector<int16_t> scores(4 * 256);
  adamas_score_params good{};
  good.struct_size = sizeof good;
  good.q_heads = 4;
  good.q = o.q.data();
  good.q_stride_head = 64 * 4;
  good.threads = 1;
  good.scores = scores.data();
  ASSERT_EQ(adamas_append(o.cache, 0, 0, 256, &o.rows, &o.rows), ADAMAS_OK);
  ASSERT_EQ(adamas_scores(o.cache, &good), ADAMAS_OK) << adamas_last_error();
  const auto score = [&](auto&& change, adamas_status status, const char* part) {
    adamas_score_params p = good;
    change(p);
    expect_sentence(adamas_scores(o.cache, &p), status, part);
  };
  score([](auto& p) { p.struct_size = 8; }, ADAMAS_INVALID_ARGUMENT, "adamas_score_params.struct_size");
  score([](auto& p) { p.q_heads = 3; }, ADAMAS_INVALID_ARGUMENT, "multiple of kv_heads");
  score([](auto& p) { p.q = nullptr; }, ADAMAS_INVALID_ARGUMENT, "q is NULL");
  score([](auto& p) { p.scores = nullptr; }, ADAMAS_INVALID_ARGUMENT, "scores is NULL");
  score([](auto& p) { p.threads = 0; }, ADAMAS_INVALID_ARGUMENT, "threads");
  score([](auto& p) { p.scale = -1; }, ADAMAS_INVALID_ARGUMENT, "scale");
  score([](auto& p) { p.q_dtype = ADAMAS_Q8_0; }, ADAMAS_INVALID_ARGUMENT, "dtype");
  for (const int64_t sequence : extremes)
    score([&](auto& p) { p.sequence = sequence; }, ADAMAS_INVALID_ARGUMENT, "sequence");
  ASSERT_EQ(adamas_append(o.cache, 1, 64, 64, &o.rows, &o.rows), ADAMAS_OK);
  score([](auto& p) { p.sequence = 1; }, ADAMAS_INVALID_ARGUMENT, "some rows of block 0 were never appended");
  ASSERT_EQ(adamas_append(o.cache, 0, 70, 1, nullptr, nullptr), ADAMAS_OK);
  score([](auto&) {}, ADAMAS_INVALID_ARGUMENT, "block 1 is not encoded yet");

  std::vector<int64_t> indices(4 * 256), counts(4);
  const auto select = [&](int32_t heads, int64_t count, int64_t budget, const char* part) {
    const adamas_select_params p{sizeof p,       heads,         count,   scores.data(), budget,
                                 indices.data(), counts.data(), nullptr, nullptr};
    expect_sentence(adamas_select(&p), part == nullptr ? ADAMAS_OK : ADAMAS_INVALID_ARGUMENT, part == nullptr ? "" : part);
  };
  select(4, 256, 256, nullptr);
  for (const int64_t bad : extremes) {
    if (bad < 1 || bad > INT32_MAX) select(4, 256, bad, "budget");
    if (bad < 0 || bad > INT32_MAX) select(4, bad, 1, "count");
    select(0, 256, 1, "heads");
  }

  const adamas_attend_params all{sizeof all, 4,       2, 64,      ADAMAS_F32,   1,       o.q.data(), 64 * 4, 1, 256, o.rows,
                                 o.rows,     nullptr, 0, nullptr, o.out.data(), nullptr, 0,          0};
  ASSERT_EQ(adamas_attend(&all), ADAMAS_OK) << adamas_last_error();
  const auto attend = [&](auto&& change, adamas_status status, const char* part) {
    adamas_attend_params p = all;
    p.indices = indices.data();
    p.index_stride = 256;
    p.counts = counts.data();
    std::fill(counts.begin(), counts.end(), 1);
    change(p);
    expect_sentence(adamas_attend(&p), status, part);
  };
  attend([](auto& p) { p.head_dim = 63; }, ADAMAS_UNSUPPORTED, "head_dim 63");
  attend([](auto& p) { p.kv_heads = 3; }, ADAMAS_INVALID_ARGUMENT, "multiple of kv_heads");
  attend([](auto& p) { p.counts = nullptr; }, ADAMAS_INVALID_ARGUMENT, "counts is NULL");
  attend([](auto& p) { p.out = nullptr; }, ADAMAS_INVALID_ARGUMENT, "out is NULL");
  attend([](auto& p) { p.k.data = nullptr; }, ADAMAS_INVALID_ARGUMENT, "k is NULL");
  attend([](auto& p) { p.softcap = NAN; }, ADAMAS_INVALID_ARGUMENT, "softcap");
  attend([&](auto&) { counts[3] = 257; }, ADAMAS_INVALID_ARGUMENT, "counts: 257");
  for (const int64_t index : extremes)
    attend([&](auto&) { indices[256] = index; }, ADAMAS_OUT_OF_RANGE, "indices of head 1");
}

TEST(BadInput, OriginsAreWholeBlocksOfTheHosts) {
  Objects o;
  adamas_cache_params c = o.cache_params;
  adamas_cache* cache = nullptr;
  for (const int64_t origin : {int64_t{-64}, int64_t{63}, int64_t{100}, INT64_MAX}) {
    c.origin = origin;
    expect_sentence(adamas_cache_create(&o.config, &c, &cache), ADAMAS_INVALID_ARGUMENT, "origin");
  }
  c.origin = 64;
  c.device = ADAMAS_DEVICE_CUDA;
  expect_sentence(adamas_cache_create(&o.config, &c, &cache), ADAMAS_UNSUPPORTED, "origin 64");
}

// NaN and infinities in a live key or query: the row that holds them may be NaN, indices stay in range, others are
// untouched.
TEST(BadInput, NonFiniteKeysAndQueriesStayWhereTheyAre) {
  Objects o;
  for (size_t i = 0; i < o.memory.size(); i++) o.memory[i] = float((i * 2654435761u) % 1000) / 500 - 1;
  for (int d = 0; d < 64; d++) o.memory[size_t(100) * 64 + d] = d % 2 ? NAN : INFINITY;  // sequence 0, head 0, token 100
  o.p.q_dtype = ADAMAS_F32;
  for (int i = 0; i < 256; i++) o.q[i] = float(i % 7) - 3;
  ASSERT_EQ(adamas_step(o.plan, o.cache, &o.p), ADAMAS_OK);
  for (int h = 2; h < 4; h++)
    for (int d = 0; d < 64; d++) EXPECT_TRUE(std::isfinite(o.out[h * 64 + d]));
  o.q[0] = NAN;
  o.q[64] = INFINITY;
  ASSERT_EQ(adamas_step(o.plan, o.cache, &o.p), ADAMAS_OK);
  for (int h = 0; h < 4; h++) {
    std::vector<int64_t> indices(256);
    int64_t count = 0;
    ASSERT_EQ(adamas_selection(o.plan, h, indices.data(), 256, &count), ADAMAS_OK);
    EXPECT_TRUE(count >= 4 && count <= 256) << count;  // an infinite query is all noise: it may be read densely
    for (int64_t i = 0; i < count; i++) {
      EXPECT_GE(indices[i], i == 0 ? 0 : indices[i - 1] + 1);
      EXPECT_LT(indices[i], 256);
    }
  }
  for (int h = 2; h < 4; h++)
    for (int d = 0; d < 64; d++) EXPECT_TRUE(std::isfinite(o.out[h * 64 + d]));
}

}  // namespace
