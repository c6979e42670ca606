/* Adamas: sparse attention over a KV cache that stays yours.
 *
 * Three objects:
 *   adamas_config   the settings: policy, estimator, budget, ... (plain struct)
 *   adamas_cache    the 2-bit codes of one layer's keys and its values' means, for one or more sequences
 *   adamas_plan     the scratch memory of a step, sized once; a step allocates nothing
 * and two verbs:
 *   adamas_append   rows of K and V were written: their blocks are (to be) encoded
 *   adamas_step     attention of query rows over the tokens that the policy selects
 *
 * Every call returns a status. When it is not ADAMAS_OK, adamas_last_error() holds a sentence that
 * says why (thread-local, valid until the next call on that thread). No call throws, prints, aborts
 * or reads outside the memory that its arguments describe. A cache or plan may be used by one thread
 * at a time; different ones are independent.
 *
 * A struct with a struct_size may be given by a program that was built against an older header: fields that the
 * program does not know take their defaults, and nothing is written behind the ones that it has.
 *
 * Shapes are written innermost last. Strides are in bytes, may be any value for which the addressed
 * memory exists (zero and negative included), and need not be aligned. head_dim is contiguous.
 */
#ifndef ADAMAS_H
#define ADAMAS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ADAMAS_API
#else
#define ADAMAS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ADAMAS_VERSION_MAJOR 0
#define ADAMAS_VERSION_MINOR 2
#define ADAMAS_VERSION_PATCH 0

/* Tokens in a block, the unit of codes. The codes of a closed block, one that others of its sequence follow, are a pure
 * function of its own rows and of whether it is its sequence's first. Of a sequence's last block not all rows have codes
 * yet; they are a function of those that have. */
#define ADAMAS_BLOCK_TOKENS 64
/* Rows whose hashes a step may check in turn at no cost that shows: 8192 of them in 512 steps. */
#define ADAMAS_VERIFY_ROWS 16
/* So many query rows of a sequence at once are a prompt (adamas_config.prompt). */
#define ADAMAS_PROMPT_ROWS 64

typedef enum adamas_status {
  ADAMAS_OK = 0,
  ADAMAS_INVALID_ARGUMENT = 1, /* a NULL, a wrong struct_size, a value out of its range */
  ADAMAS_UNSUPPORTED = 2,      /* valid, but not served here: a head_dim that is not in the list, say */
  ADAMAS_OUT_OF_RANGE = 3,     /* past the capacity of a cache or plan */
  ADAMAS_OUT_OF_MEMORY = 4,
  ADAMAS_INTERNAL = 5 /* a fault of ours, caught at the boundary */
} adamas_status;

/* Element types. K and V may be any, q and masks one of the first three. The quantised ones are llama.cpp's: a row is
 * blocks of 32 elements, packed, so head_dim has to be a multiple of 32. With an f16 `scale`, and an f16 `min` where there
 * is one, element i is
 *   q8_0            int8 i times scale
 *   q5_0, q5_1      5 bits: nibble i, and bit i of a u32 above it; (bits - 16) times scale, or bits times scale + min
 *   q4_0, q4_1      4 bits: nibble i; (bits - 8) times scale, or bits times scale + min
 *   iq4_nl          4 bits: nibble i; table[bits] times scale, with 16 levels from -127 to 113 that lie closer around 0
 * in the order scale, min, u32, quants. Nibble i is the lower half of byte i, and from i = 16 on the upper half of byte
 * i - 16. */
typedef enum adamas_dtype {
  ADAMAS_F32 = 0,
  ADAMAS_F16 = 1,
  ADAMAS_BF16 = 2,
  ADAMAS_Q8_0 = 3,   /* 34 bytes a block of 32 elements */
  ADAMAS_Q5_0 = 4,   /* 22 */
  ADAMAS_Q5_1 = 5,   /* 24 */
  ADAMAS_Q4_0 = 6,   /* 18 */
  ADAMAS_Q4_1 = 7,   /* 20 */
  ADAMAS_IQ4_NL = 8, /* 18 */
  ADAMAS_F8_E4M3 = 9 /* a byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F is no number, there is no infinity */
} adamas_dtype;

typedef enum adamas_policy {
  ADAMAS_POLICY_ADAMAS = 0,    /* what may matter by estimated scores: a list and a rest, or the top `budget` of a head */
  ADAMAS_POLICY_FULL = 1,      /* every visible token: dense attention */
  ADAMAS_POLICY_QUEST = 2,     /* the top pages of 16 tokens by min/max bounds (arXiv 2406.10774) */
  ADAMAS_POLICY_STREAMING = 3, /* the first `sinks` and the most recent tokens (arXiv 2309.17453) */
  ADAMAS_POLICY_ORACLE = 4     /* the top tokens by their true scores: reads every key, a bound for selecting alone */
} adamas_policy;

typedef enum adamas_estimator {
  ADAMAS_ESTIMATOR_DOT = 0,      /* 8-bit query times 2-bit keys, in integers */
  ADAMAS_ESTIMATOR_MANHATTAN = 1 /* negative L1 distance between 2-bit codes (arXiv 2510.18413) */
} adamas_estimator;

typedef enum adamas_preset {
  ADAMAS_PRESET_DEFAULT = 0, /* codes by the block: centred and scaled by their own rows */
  ADAMAS_PRESET_PAPER = 1    /* as published: thresholds (-10, 0, 10), no centre, manhattan, two dense layers, no sinks */
} adamas_preset;

typedef enum adamas_device {
  ADAMAS_DEVICE_CPU = 0,
  ADAMAS_DEVICE_REFERENCE = 1, /* the definitions in plain loops, in double precision: slow, to compare others with */
  ADAMAS_DEVICE_CUDA = 2       /* the GPU that is current when it is used: see adamas_gpu_count */
} adamas_device;

typedef enum adamas_rows_mode {
  ADAMAS_ROWS_DECODE = 0, /* prompts, 64 rows and more of a sequence at once, are read as `prompt` says */
  ADAMAS_ROWS_ALL = 1     /* every query row of a batch makes its own selection */
} adamas_rows_mode;

typedef enum adamas_prompt_mode {
  ADAMAS_PROMPT_DENSE = 0,  /* every row of a prompt attends to all that it sees, all rows in one pass */
  ADAMAS_PROMPT_ENGINE = 1, /* doors leave prompts to the engine; in a step of the library's a row is a row */
  ADAMAS_PROMPT_SPARSE = 2 /* as dense, but rows near each other leave out together each block of 64 tokens that is less than
                            * 0.3% of the softmax of each, a tenth of it in all; the last 16 rows of a step nothing. On a
                            * CPU; elsewhere as dense */
} adamas_prompt_mode;

#define ADAMAS_BUDGET_AUTO (-1) /* a list for the query heads of a KV head, as long as it needs to be, and a rest */
/* What it stands for where a number is needed: a context of so many is read whole, other policies read so many. */
#define ADAMAS_AUTO_TOKENS 128
/* That number, of a budget of either kind. */
static inline int64_t adamas_budget_tokens(int64_t budget) {
  return budget == ADAMAS_BUDGET_AUTO ? ADAMAS_AUTO_TOKENS : budget;
}

/* The settings. Fill with adamas_config_init, then change fields or call adamas_config_set. */
typedef struct adamas_config {
  uint32_t struct_size; /* sizeof(adamas_config) */
  int32_t preset;       /* adamas_preset */
  int32_t policy;       /* adamas_policy */
  int32_t estimator;    /* adamas_estimator */
  int64_t budget; /* ADAMAS_BUDGET_AUTO; or the tokens that each query head reads, 1 to 2^31 - 1, and nothing else counts */
  int64_t sinks;  /* first tokens, always attended to, inside a fixed budget; 4 */
  int64_t recent; /* most recent tokens, always attended to, inside a fixed budget */
  double share;   /* with ADAMAS_BUDGET_AUTO: what a token may weigh in the softmax of a head to be read in full; 0.0004 */
  double max_noise;     /* a head whose estimate is noisier (variance of a score) is read densely; 0: never */
  double min_mass;      /* a head that reads less of the softmax than this reads more tokens, at last all; 0: never */
  int64_t dense_layers; /* layers [0, dense_layers) are dense; 0 */
  int64_t min_context;  /* visible tokens below which a step is dense; 0: none */
  int32_t rows;         /* adamas_rows_mode */
  int32_t stats;        /* 1: doors print a summary at exit */
  int32_t prompt;       /* adamas_prompt_mode */
} adamas_config;

/* What a setting is called, what it may be and what it means; index from 0 to adamas_setting_count() - 1.
 * The strings live as long as the library. `name` is "budget", the environment variable is ADAMAS_BUDGET. */
typedef struct adamas_setting {
  const char* name;
  const char* environment;
  const char* range;
  const char* meaning;
} adamas_setting;

ADAMAS_API const char* adamas_version(void);
ADAMAS_API const char* adamas_last_error(void);
ADAMAS_API const char* adamas_status_name(adamas_status status);

/* The settings of the preset `default`, as many as config->struct_size has room for. */
ADAMAS_API adamas_status adamas_config_defaults(adamas_config* config);
/* The same, of a struct as this header knows it. */
static inline adamas_status adamas_config_init(adamas_config* config) {
  if (config != NULL) config->struct_size = sizeof(adamas_config);
  return adamas_config_defaults(config);
}
/* One setting from text, by name ("budget", "128"). Setting "preset" resets the fields that the preset defines. */
ADAMAS_API adamas_status adamas_config_set(adamas_config* config, const char* name, const char* value);
/* One setting as text; `text` has room for `size` bytes, the end mark included. */
ADAMAS_API adamas_status adamas_config_get(const adamas_config* config, const char* name, char* text, size_t size);
/* The file that ADAMAS_CONFIG names, then every ADAMAS_<NAME> of the environment, the preset first, and ADAMAS_ISA for
 * adamas_isa_force. All or nothing: on an error `config` is unchanged. */
ADAMAS_API adamas_status adamas_config_from_environment(adamas_config* config);
/* The same of variables that get(user, "ADAMAS_BUDGET") gives, NULL where there is none: for a program with flags that win
 * over the environment. */
typedef const char* (*adamas_variable_fn)(void* user, const char* name);
ADAMAS_API adamas_status adamas_config_from_variables(adamas_config* config, adamas_variable_fn get, void* user);
/* A settings file on top of `config`: lines `name = value`, comments from # on, and sections `[layers 0,3-5]`. With layer -1
 * its general lines; with a layer what the sections say of that layer (budget, share, ...; not what concerns the whole
 * model). */
ADAMAS_API adamas_status adamas_config_load(adamas_config* config, const char* path, int32_t layer);
/* Every field within its range, and the fields consistent with each other (sinks + recent <= budget). */
ADAMAS_API adamas_status adamas_config_check(const adamas_config* config);
ADAMAS_API int32_t adamas_setting_count(void);
ADAMAS_API adamas_status adamas_setting_describe(int32_t index, adamas_setting* setting);

/* The instruction sets that this machine can run, best first, and the one in use.
 * adamas_isa_force: by name ("AVX3_DL", "AVX2", ...; any case) or "auto". Process-wide; call it before steps run. */
ADAMAS_API int32_t adamas_isa_count(void);
ADAMAS_API const char* adamas_isa_name(int32_t index);
ADAMAS_API const char* adamas_isa_in_use(void);
ADAMAS_API adamas_status adamas_isa_force(const char* name);

/* The head_dims that are served, ascending: 64, 80, 96, 112, 128, 192, 256. */
ADAMAS_API int32_t adamas_head_dim_count(void);
ADAMAS_API int32_t adamas_head_dim(int32_t index);

/* The types that K and V may have, "f32", "f16", ...: dtype from 0 to adamas_dtype_count() - 1. */
ADAMAS_API int32_t adamas_dtype_count(void);
ADAMAS_API const char* adamas_dtype_name(int32_t dtype);

/* The GPUs that ADAMAS_DEVICE_CUDA can use, by name. Where there is none, adamas_gpu_reason says why: no driver, or a
 * library that was built without CUDA.
 *
 * With ADAMAS_DEVICE_CUDA every pointer to data names memory that the GPU can read: rows, queries, outputs, sequences,
 * lengths, page tables, slopes, codes. Numbers and strides are the host's. A call checks what the host knows, puts its work
 * into a stream and returns; no step allocates or waits, and a captured graph may be replayed while lengths and tables
 * change. A page id out of range is read as page 0. Rows are f32, f16, bf16 or f8_e4m3, K and V of one dtype, and their
 * addresses and strides are multiples of 16 bytes. Appended rows have to be told of (adamas_append_rows, adamas_append): a
 * sequence's rows are its first `length` tokens, and a step that sees more than its newest block without codes reads
 * densely. No hashes are kept, so `verify` is not served. `stats` lie where the GPU can write,
 * and `times` are refused. Unless codes lie by page every sequence has places of its own: fewer blocks are refused. */
ADAMAS_API int32_t adamas_gpu_count(void);
ADAMAS_API const char* adamas_gpu_name(int32_t index);
ADAMAS_API const char* adamas_gpu_reason(void);

/* ---- cache: the codes of one layer ------------------------------------------------------------------- */

typedef struct adamas_cache adamas_cache;

/* The caller has multiplied the keys, and with them every query, by an orthonormal Hadamard matrix already, as llama.cpp
 * does before it quantises: codes are made of the rows as they are. (Of values nothing needs to be said: a step gives what V
 * is given in.) */
#define ADAMAS_ROTATED_KEYS 1

/* One kind of what a cache keeps of blocks: a base, and strides in bytes. */
typedef struct adamas_code_array {
  void* data;
  int64_t stride_block; /* from a place of the pool to the next */
  int64_t stride_head;  /* from a KV head to the next */
} adamas_code_array;

/* Memory of the caller's for a cache's codes, as an engine has it that keeps codes inside its own pages. Each array is
 * [kv_heads, blocks] of what docs/codes.md says; data and strides are multiples of 4, and of 64 the codes are read fastest.
 * adamas_code_records fills this for blocks that lie each in one piece. */
typedef struct adamas_code_memory {
  uint32_t struct_size;           /* sizeof(adamas_code_memory) */
  adamas_code_array codes;        /* u32 [2, chunks, 64] */
  adamas_code_array centre;       /* i16 [head_dim] */
  adamas_code_array hash;         /* u32 [64] */
  adamas_code_array centre_scale; /* f32 */
  adamas_code_array sigma;        /* f32 */
  adamas_code_array mean;         /* i16 [head_dim], with ADAMAS_BUDGET_AUTO */
  adamas_code_array mean_scale;   /* f32, with ADAMAS_BUDGET_AUTO */
  adamas_code_array bounds;       /* f32 [4, 2, head_dim], with the policy quest */
} adamas_code_memory;

typedef struct adamas_cache_params {
  uint32_t struct_size; /* sizeof(adamas_cache_params) */
  int32_t layer;        /* index of the layer in its model, for dense_layers */
  int32_t kv_heads;
  int32_t head_dim;
  int64_t sequences; /* independent sequences, 1 or more */
  int64_t capacity;  /* tokens of each sequence, at most 2^31 - 1 */
  int64_t rotated;   /* ADAMAS_ROTATED_KEYS, or 0 */
  int32_t device;    /* adamas_device, where codes are made and lie; the plan's, too */
  int32_t by_page;   /* 1: codes lie by the pages of K (see adamas_pages); 0: where the cache places them */
  int64_t blocks;    /* places for blocks of codes, of all sequences together; 0: for as many as they can have */
  const adamas_code_memory* memory; /* where codes lie, [blocks] places; NULL: in memory of the cache's own */
  int64_t origin; /* on a CPU: sequences begin at this token, a multiple of 64; another cache has what is before it */
} adamas_cache_params;

/* Where the pages of paged rows are: a table of page ids for each sequence. The pages of a sequence hold its tokens in
 * order, page_tokens each. Ids are checked before anything is read; what the table says of tokens that are not in view is
 * not looked at.
 *
 * With adamas_cache_params.by_page the codes of a block lie by the page that its keys are in: at place
 * id * page_tokens / 64 + (block within the page). The engine that owns the pages says through its table which sequences
 * share one, and when one is used again: nothing is told when a page is freed, and adamas_append says which rows were
 * written. page_tokens is a multiple of 64 then, and a sequence's rows are its first `length` tokens, none left out.
 * Without it, pages are of any power of two, and codes lie where the cache places them. */
typedef struct adamas_pages {
  uint32_t struct_size; /* sizeof(adamas_pages) */
  int32_t page_tokens;  /* a power of two, 1 to 2^20 */
  int64_t count;        /* pages there are: ids are below it */
  const int32_t* table; /* [sequences, pages of a sequence] */
  int64_t stride;       /* ids from a sequence's row of the table to the next */
} adamas_pages;

/* K or V of every sequence, [sequences, kv_heads, tokens, head_dim]; or paged, [pages, kv_heads, page_tokens, head_dim]. The
 * memory stays the caller's. */
typedef struct adamas_rows {
  const void* data;
  int32_t dtype;           /* adamas_dtype */
  int64_t stride_sequence; /* unused when there are pages */
  int64_t stride_head;
  int64_t stride_token;
  const adamas_pages* pages; /* NULL: not paged */
  int64_t stride_page;
} adamas_rows;

ADAMAS_API adamas_status adamas_cache_create(const adamas_config* config, const adamas_cache_params* params,
                                             adamas_cache** cache);
ADAMAS_API void adamas_cache_destroy(adamas_cache* cache);
/* Memory of the keys' codes, centres and hashes, the values' means and lengths when every place is used, in bytes. */
ADAMAS_API adamas_status adamas_cache_bytes(const adamas_cache* cache, uint64_t* bytes);
/* Places of the pool that hold a block, and how many there are. A block that sequences share is one. By page the engine
 * knows which are used: 0. */
ADAMAS_API adamas_status adamas_cache_places(const adamas_cache* cache, int64_t* used, int64_t* all);
/* The arrays of a cache of these settings and this shape (kv_heads, head_dim) whose blocks lie each in one piece, at
 * data + place * stride_block + kv_head * stride_head, in the order of adamas_block_bytes; and the bytes of such a piece.
 * `memory` or `bytes` may be NULL. */
ADAMAS_API adamas_status adamas_code_records(const adamas_config* config, const adamas_cache_params* params, void* data,
                                             int64_t stride_block, int64_t stride_head, adamas_code_memory* memory,
                                             size_t* bytes);

/* Rows [first, first + count) of a sequence were written: appended, or overwritten. Their blocks are encoded now,
 * from `k` and `v` (all rows of those blocks are read); what is NULL is encoded by the next step. ADAMAS_OUT_OF_RANGE when
 * the pool has no place for them: nothing changes then, and steps that see such rows read them densely.
 * By page `k` is needed, for its table, and the rows are the sequence's last. */
ADAMAS_API adamas_status adamas_append(adamas_cache* cache, int64_t sequence, int64_t first, int64_t count,
                                       const adamas_rows* k, const adamas_rows* v);
/* The newest rows of several sequences, as a decoding step writes them: of the b-th sequence [lengths[b] - rows,
 * lengths[b]), or as many as there are; the sequence ends with them. What adamas_append says of it holds, and on a GPU the
 * call works in `stream` and reads `sequences` and `lengths` there, when it runs. Where codes are encoded depends on the
 * lengths alone, so it may be called for every token of a captured graph. */
typedef struct adamas_append_params {
  uint32_t struct_size; /* sizeof(adamas_append_params) */
  int64_t batch;
  int64_t rows;
  const int64_t* sequences; /* [batch]; NULL: 0, 1, 2, ... */
  const int64_t* lengths;   /* [batch] tokens, these rows included */
  adamas_rows k, v;         /* v.data may be NULL on a CPU: values wait for a step */
  void* stream;             /* a cudaStream_t; NULL: the default stream */
} adamas_append_params;
ADAMAS_API adamas_status adamas_append_rows(adamas_cache* cache, const adamas_append_params* params);
/* Rows [length, ...) of a sequence are gone; their values are never looked at again. Re-encodes the block that was cut
 * when it is next used. */
ADAMAS_API adamas_status adamas_truncate(adamas_cache* cache, int64_t sequence, int64_t length);
/* Every row of a sequence is gone; of all sequences when `sequence` is -1. */
ADAMAS_API adamas_status adamas_clear(adamas_cache* cache, int64_t sequence);
/* Sequence `to`, whatever it was, becomes the first `length` tokens of `from`: a prompt that both begin with, a branch of a
 * search. Their blocks of codes are shared; a sequence whose rows change gets blocks of its own first. The rows of K and V
 * of `to` have to be the same ones, copied or in pages that both tables name. Not by page, where the engine's table shares.
 */
ADAMAS_API adamas_status adamas_share(adamas_cache* cache, int64_t from, int64_t to, int64_t length);
/* K changed without adamas_append: every row's codes are made anew when they are next used. */
ADAMAS_API adamas_status adamas_invalidate(adamas_cache* cache);
/* The tokens of a sequence that were appended. */
ADAMAS_API adamas_status adamas_length(const adamas_cache* cache, int64_t sequence, int64_t* tokens);
/* The bytes of one block (its keys' codes, then its values' mean where it is kept), as docs/codes.md lays them out: copied
 * to `bytes` (room for `size`), and their number to `*needed`. `bytes` may be NULL to ask for the number. The length that
 * counts is that of adamas_append. */
ADAMAS_API adamas_status adamas_block_bytes(const adamas_cache* cache, int64_t sequence, int32_t kv_head, int64_t block,
                                            void* bytes, size_t size, size_t* needed);

/* ---- step ------------------------------------------------------------------------------------------- */

typedef struct adamas_plan adamas_plan;

typedef struct adamas_plan_params {
  uint32_t struct_size; /* sizeof(adamas_plan_params) */
  int32_t q_heads;
  int32_t kv_heads; /* divides q_heads */
  int32_t head_dim;
  int64_t max_tokens;  /* the longest context of a step */
  int32_t max_threads; /* 1 to 512 */
  int32_t device;      /* adamas_device, where steps run; the cache's, too */
  int64_t max_rows;    /* on a GPU: query rows of a step, of all its sequences, at most; 0: 1 */
} adamas_plan_params;

ADAMAS_API adamas_status adamas_plan_create(const adamas_config* config, const adamas_plan_params* params,
                                            adamas_plan** plan);
ADAMAS_API void adamas_plan_destroy(adamas_plan* plan);
/* Memory of the GPU that a step of this plan works in, given by the caller: adamas_step_params.workspace. Its contents mean
 * nothing between steps, so plans whose steps follow each other in a stream may share it. 0 on a CPU. */
ADAMAS_API adamas_status adamas_plan_workspace(const adamas_plan* plan, size_t* bytes);

/* What a step did; filled when `stats` is given. Rows count (sequence, query row) pairs; tokens and heads are summed over
 * the sparse rows and their query heads.
 *
 * On a GPU `stats` is memory that the GPU can write (its own, managed, or pinned), which the caller has zeroed but for
 * struct_size. A step adds to it when it runs, after its output, and so does each replay of a captured graph; steps that add
 * to one struct follow each other in a stream. That is two small kernels more, in steps that are asked for it. */
typedef struct adamas_step_stats {
  uint32_t struct_size; /* sizeof(adamas_step_stats) */
  int64_t rows_sparse;
  int64_t rows_dense;
  int64_t tokens_visible;
  int64_t tokens_selected; /* read in full and attended to */
  int64_t rows_read;       /* rows of K, and as many of V, that were read: a list serves every query head of its KV head */
  int64_t heads_sparse;    /* query heads of sparse rows */
  int64_t heads_guarded;   /* of these, read densely because of their noise (max_noise) */
  int64_t heads_widened;   /* of these, with more tokens or dense because of min_mass */
  double mass; /* share of the softmax that the selected tokens hold, as estimated, summed over heads_sparse; NaN where
                * nothing estimated it: a fixed budget whose caller asked for no masses, streaming, Quest */
  int64_t blocks_encoded; /* blocks x kv_heads encoded by this step */
  int64_t rows_stale;     /* key rows whose hash differed from the one their codes were made from */
} adamas_step_stats;

/* Where a step's time went on a CPU, in nanoseconds; filled when `times` is given. A stage's is that of every thread that
 * worked on it, added up; a thread that waits for another is in none. So the stages come to at most wall x threads. */
typedef struct adamas_step_times {
  uint32_t struct_size; /* sizeof(adamas_step_times) */
  int64_t wall;         /* of the whole step, from its first row to its last */
  int64_t look;         /* which tokens each row may see */
  int64_t encode;       /* codes of the blocks that changed since the last step */
  int64_t prepare;      /* rotation of the queries; scores of the blocks' centres */
  int64_t estimate;     /* scores of all tokens, from codes of keys */
  int64_t select;       /* which tokens are read: by threshold or top budget */
  int64_t exact;        /* their keys */
  int64_t check;        /* hashes of key rows (verify) */
  int64_t attend;       /* their values; with quest and streaming their keys too */
  int64_t rest;         /* weights of all tokens by estimate, and the blocks' means */
  int64_t dense;        /* rows and heads whose tokens are all read */
} adamas_step_times;

/* Attention of `rows` query rows of each of `batch` sequences:
 *   out[b, r, h] = sum_t softmax_t(softcap(scale * q[b, r, h] . k[s, h / group, t]) + bias[b, r, h, t]) * v[s, h / group, t]
 * over the tokens t that row r may see and that the policy selects; s = sequences[b], group = q_heads / kv_heads,
 * softcap(x) = softcap * tanh(x / softcap) when softcap > 0, bias = slope[h] * mask[b, r, t].
 * With ADAMAS_BUDGET_AUTO the other tokens count as well, as the rest: with weights estimated from the codes of K, corrected
 * by the factor that the tokens read show, at their blocks' mean values, moved by what the lowest tokens read show
 * (docs/quality.md). Rows that a step shows and that were never appended are encoded on sight. A row that may see at most
 * `budget` tokens (ADAMAS_AUTO_TOKENS, when it is automatic), or fewer than `min_context`, is computed densely; so are the
 * rows of a prompt (adamas_config.prompt; not on a GPU), with products of 16-bit integers (docs/numerics.md), and on a GPU,
 * unless min_context is 0, rows where that is faster for the plan's shape (docs/gpu.md). A row that may see no token gives 0
 * and lse -inf. */
typedef struct adamas_step_params {
  uint32_t struct_size; /* sizeof(adamas_step_params) */
  int32_t threads;      /* 1 to the plan's max_threads */
  int64_t batch;
  int64_t rows;
  const int64_t* sequences; /* [batch]; NULL: 0, 1, 2, ... */
  const int64_t* lengths;   /* [batch] tokens in view; NULL: as many as were appended */
  int32_t causal;           /* 1: row r sees tokens [0, length - rows + r]; 0: [0, length) */
  int32_t q_dtype;          /* f32, f16 or bf16 */
  const void* q;            /* [batch, rows, q_heads, head_dim] */
  int64_t q_stride_batch, q_stride_row, q_stride_head;
  adamas_rows k; /* [sequences, kv_heads, tokens, head_dim] */
  adamas_rows v;
  float* out; /* [batch, rows, q_heads, head_dim] */
  int64_t out_stride_batch, out_stride_row, out_stride_head;
  float* lse;       /* [batch, rows, q_heads] contiguous, natural log; NULL: not wanted */
  float scale;      /* 0: 1 / sqrt(head_dim) */
  float softcap;    /* 0: none */
  float* mass;      /* [batch, rows, q_heads] share of the softmax in the selected tokens, estimated from the codes
                     * of the others (1: all tokens were read; NaN: the policy estimates nothing, or a GPU's
                     * fixed budget has no min_mass); NULL: not wanted */
  float* noise;     /* [batch, rows, q_heads] variance of the estimated scores; 0: none estimated; NULL: not wanted */
  const void* mask; /* [batch, rows, tokens], added to the scores, -inf hides a token; NULL: none */
  int32_t mask_dtype;
  int32_t verify; /* 1: check the hashes of the key rows that are read, and `verify_rows` more */
  int64_t mask_stride_batch, mask_stride_row;
  int64_t verify_rows; /* rows of a rotating slice, checked beside the selected ones; ADAMAS_VERIFY_ROWS, say */
  const float* slopes; /* [q_heads] ALiBi: multiplies the mask, or the distance t - (last token in view) when mask is NULL */
  const float* sink_logits; /* [q_heads] one more logit of the softmax, with value 0; NULL: none */
  adamas_step_stats* stats; /* NULL: not wanted; on a GPU it is added to, where the GPU can write */
  adamas_step_times* times; /* NULL: not wanted, and nothing is measured; not on a GPU, whose stages overlap */
  void* stream;             /* on a GPU: a cudaStream_t; NULL: the default stream */
  void* workspace;          /* on a GPU: adamas_plan_workspace bytes, at a multiple of 256 */
  size_t workspace_bytes;
  float k_scale; /* what K's and V's elements are multiplied by, as f8_e4m3 needs it: scores are, and so is out; 0: 1. */
  float v_scale; /* Codes and means are of the elements as they lie: a factor holds for all rows of a sequence. */
} adamas_step_params;

ADAMAS_API adamas_status adamas_step(adamas_plan* plan, adamas_cache* cache, const adamas_step_params* params);

/* The tokens that the last adamas_step attended to for its last sequence and row, ascending, of one query head.
 * `indices` has room for `size` entries; `*count` is how many there are. Dense rows answer with every visible token. */
ADAMAS_API adamas_status adamas_selection(const adamas_plan* plan, int32_t q_head, int64_t* indices, int64_t size,
                                          int64_t* count);

/* ---- single stages ------------------------------------------------------------------------------------ */

/* For study, and for a context that lies in parts, in the caches of several processes. On a CPU. Of one query row: a fixed
 * budget's step is adamas_scores, then adamas_select of its budget, then adamas_attend to that; but for heads whose noise is
 * above max_noise, which a step lets attend to all.
 *
 * What a context in parts has to agree on goes through one function of the caller's: an all-reduce, say. Each of its parts
 * calls a stage with the same settings and heads, and the stage then calls `merge` equally often in each of them, for as
 * many values. It returns 0, or anything else when it failed: so does the stage, then. NULL: the sequence is the whole
 * context. */
typedef enum adamas_merge_op {
  ADAMAS_MERGE_MAX = 0,   /* each value becomes the largest that a part has */
  ADAMAS_MERGE_SUM = 1,   /* the sum of what the parts have; below 2^53, and most of them are whole numbers */
  ADAMAS_MERGE_BEHIND = 2 /* the sum of what the parts behind this one have */
} adamas_merge_op;
typedef int32_t (*adamas_merge_fn)(void* user, int32_t op, double* values, int64_t count);

/* Scores of all tokens of a sequence, from their codes: what a fixed budget is selected by, and (without what must be read)
 * what lists are made from. scale q . k is about unit score + highest, with a variance of `noise`. 32767 stands for what is
 * read in any case (sinks, recent tokens, the newest rows without codes), -32768 for what is no token.
 * Its rows have been appended, with K. Of a context in parts every part but the last that has tokens is full to the origin
 * of the next; two calls of merge, or three. */
typedef struct adamas_score_params {
  uint32_t struct_size; /* sizeof(adamas_score_params) */
  int32_t q_heads;      /* a multiple of the cache's kv_heads */
  int64_t sequence;
  const void* q; /* [q_heads, head_dim] */
  int64_t q_stride_head;
  int32_t q_dtype; /* f32, f16 or bf16 */
  int32_t threads; /* 1 to 512 */
  float scale;     /* 0: 1 / sqrt(head_dim) */
  int16_t* scores; /* [q_heads, tokens rounded up to a multiple of 64] */
  double* unit;    /* [q_heads]; NULL: not wanted */
  double* highest; /* [q_heads]; NULL: not wanted */
  float* noise;    /* [q_heads]; NULL: not wanted */
  int64_t* tokens; /* of the whole context; NULL: not wanted */
  adamas_merge_fn merge;
  void* user;
} adamas_score_params;
ADAMAS_API adamas_status adamas_scores(const adamas_cache* cache, const adamas_score_params* params);

/* The top `budget` of each head's scores: positions, ascending. Of equal scores the later position wins; -32768 is never
 * selected. Of a context in parts each learns which of its own tokens are among the top of all: three calls of merge, of 3
 * values a head, then one for each score that the last one selected can have (a few hundred), then 1. */
typedef struct adamas_select_params {
  uint32_t struct_size; /* sizeof(adamas_select_params) */
  int32_t heads;
  int64_t count;         /* scores of a head, of this part */
  const int16_t* scores; /* [heads, count] */
  int64_t budget;        /* 1 to 2^31 - 1 */
  int64_t* indices;      /* [heads, min(budget, count)], of which a head has the first counts[head] */
  int64_t* counts;       /* [heads] */
  adamas_merge_fn merge;
  void* user;
} adamas_select_params;
ADAMAS_API adamas_status adamas_select(const adamas_select_params* params);

/* Attention of each query head over tokens of its own:
 *   out[h] = sum_t softmax_t(softcap(scale q[h] . k[t])) v[t],   lse[h] = log sum_t exp(softcap(scale q[h] . k[t]))
 * Without tokens out is 0 and lse -inf. What parts give is merged with weights exp(lse). */
typedef struct adamas_attend_params {
  uint32_t struct_size; /* sizeof(adamas_attend_params) */
  int32_t q_heads;
  int32_t kv_heads; /* divides q_heads */
  int32_t head_dim;
  int32_t q_dtype;
  int32_t threads; /* 1 to 512 */
  const void* q;   /* [q_heads, head_dim] */
  int64_t q_stride_head;
  int64_t sequence;
  int64_t tokens; /* that K and V have of it */
  adamas_rows k, v;
  const int64_t* indices; /* [q_heads, index_stride], any order; NULL: every head attends to all */
  int64_t index_stride;   /* entries from a head to the next */
  const int64_t* counts;  /* [q_heads] */
  float* out;             /* [q_heads, head_dim] */
  float* lse;             /* [q_heads]; NULL: not wanted */
  float scale;            /* 0: 1 / sqrt(head_dim) */
  float softcap;          /* 0: none */
} adamas_attend_params;
ADAMAS_API adamas_status adamas_attend(const adamas_attend_params* params);

#ifdef __cplusplus
}
#endif

#endif
