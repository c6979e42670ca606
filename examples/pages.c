/* An engine with pages: K, V and their codes lie together in pages of 64 tokens. Two sequences begin with the same prompt,
 * whose pages they share; each goes on by itself. */
#include <adamas/adamas.h>
#include <stdio.h>
#include <stdlib.h>

enum { Q_HEADS = 8, KV_HEADS = 2, HEAD_DIM = 64, PAGE = 64, PAGES = 80, OF_SEQUENCE = 40, PROMPT = 32 * PAGE };

typedef float page_rows[KV_HEADS][PAGE][HEAD_DIM];
static int32_t table[2][OF_SEQUENCE]; /* page ids */
static float q[2][Q_HEADS][HEAD_DIM], out[2][Q_HEADS][HEAD_DIM];

static void must(adamas_status status) {
  if (status == ADAMAS_OK) return;
  fprintf(stderr, "%s: %s\n", adamas_status_name(status), adamas_last_error());
  exit(1);
}

static float number(void) { return (float)rand() / (float)RAND_MAX - 0.5f; }

int main(void) {
  adamas_config config;
  must(adamas_config_init(&config));

  /* A page is K, V and a record of codes for each KV head; `record` bytes are what this version keeps. */
  adamas_cache_params shape = {.struct_size = sizeof shape,
                               .kv_heads = KV_HEADS,
                               .head_dim = HEAD_DIM,
                               .sequences = 2,
                               .capacity = OF_SEQUENCE * PAGE,
                               .by_page = 1,
                               .blocks = PAGES};
  size_t record;
  must(adamas_code_records(&config, &shape, NULL, 0, 0, NULL, &record));
  record = (record + 63) / 64 * 64;
  const size_t page_bytes = 2 * sizeof(page_rows) + KV_HEADS * record;
  char* pool = malloc(PAGES * page_bytes);
  if (pool == NULL) return 1;
  adamas_code_memory codes;
  must(adamas_code_records(&config, &shape, pool + 2 * sizeof(page_rows), (int64_t)page_bytes, (int64_t)record, &codes,
                           NULL));
  shape.memory = &codes;
  adamas_cache* cache;
  must(adamas_cache_create(&config, &shape, &cache));
  adamas_plan* plan;
  must(adamas_plan_create(&config,
                          &(adamas_plan_params){.struct_size = sizeof(adamas_plan_params),
                                                .q_heads = Q_HEADS,
                                                .kv_heads = KV_HEADS,
                                                .head_dim = HEAD_DIM,
                                                .max_tokens = OF_SEQUENCE * PAGE,
                                                .max_threads = 2},
                          &plan));

  const adamas_pages pages = {sizeof pages, PAGE, PAGES, table[0], OF_SEQUENCE};
  const int64_t row = HEAD_DIM * sizeof(float);
  const adamas_rows k = {pool, ADAMAS_F32, 0, PAGE * row, row, &pages, (int64_t)page_bytes};
  adamas_rows v = k;
  v.data = pool + sizeof(page_rows);

  /* The prompt, and then three tokens more of each sequence, in a page of its own. */
  int32_t next = 0;
  int64_t lengths[2] = {PROMPT + 3, PROMPT + 3};
  for (int i = 0; i < PROMPT / PAGE; i++) table[0][i] = table[1][i] = PAGES - 1 - next++;
  for (int s = 0; s < 2; s++) table[s][PROMPT / PAGE] = PAGES - 1 - next++;
  for (int32_t page = PAGES - next; page < PAGES; page++)
    for (size_t i = 0; i < 2 * sizeof(page_rows) / sizeof(float); i++) ((float*)(pool + page * page_bytes))[i] = number();
  must(adamas_append(cache, 0, 0, PROMPT, &k, &v));
  for (int s = 0; s < 2; s++) must(adamas_append(cache, s, PROMPT, 3, &k, &v));

  for (size_t i = 0; i < sizeof q / sizeof(float); i++) ((float*)q)[i] = 4 * number();
  adamas_step_stats stats = {.struct_size = sizeof stats};
  must(adamas_step(plan, cache,
                   &(adamas_step_params){.struct_size = sizeof(adamas_step_params),
                                         .threads = 2,
                                         .batch = 2,
                                         .rows = 1,
                                         .lengths = lengths,
                                         .k = k,
                                         .v = v,
                                         .q = q,
                                         .q_dtype = ADAMAS_F32,
                                         .q_stride_batch = sizeof q[0],
                                         .q_stride_head = sizeof q[0][0],
                                         .out = out[0][0],
                                         .out_stride_batch = sizeof out[0],
                                         .out_stride_head = sizeof out[0][0],
                                         .stats = &stats}));

  printf(
      "%lld sequences of %lld tokens, %d pages; the second one's prompt was encoded with the first one's: %lld blocks now\n",
      (long long)stats.rows_sparse, (long long)lengths[0], next, (long long)stats.blocks_encoded);
  adamas_plan_destroy(plan);
  adamas_cache_destroy(cache);
  free(pool);
  return 0;
}
