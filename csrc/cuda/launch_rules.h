// The launch heuristic: plain C++17, no CUDA, tested without a GPU (tests/test_rules.py).
//
// A rule applies to a range of architectures, an operator, rows up to a size in bytes, and calls up
// to a number of tokens; the first match wins. To add an architecture or a tuning, add rows to
// launch_rules_table.inc.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace hp_norm {

inline constexpr int kWarp = 32;
// From here on there are clusters, programmatic launch and the wait for the grid before.
inline constexpr int32_t kFirstWithClusters = 90;
inline constexpr int kMaxSharedChunks = 512;
inline constexpr int64_t kNoLimit = INT64_MAX;

// Options of a rule, added up in LaunchConfig::options.
enum LaunchOption : int32_t {
  // When the next grid may start (launch_dependents): between griddepcontrol.wait and the loads, or
  // as the CTAs end; by default behind the loads. Never before the wait: the next grid could start
  // while the one before this runs, which is safe for a kernel that reads nothing before its own
  // wait, as ours, but not for one that reads older inputs there.
  kTriggerEarly = 1,
  kTriggerAtEnd = 64,
  kPrefetchResidual = 2,  // ask L2 for the first rows' residual before waiting for the grid before
  kPrefetchAhead = 4,     // each CTA asks L2 for a row that a later CTA will read (no clusters)
  kNarrow = 8,            // accesses below the vector width, decided by the launcher
  kReread = 16,           // rows that do not fit in registers: read twice
  kStaged = 32,           // the row waits in shared memory, not in registers
  kCached = 256,          // the default cache policy (no clusters, one row a CTA, 2 or 4 vectors)
  kKeepOutput = 512,      // L2 gives the output up last (one row a CTA or cluster, 2 or 4 vectors)
  kFillGpu = 1024,   // CTAs without a row, kFillCtasPerSm on every SM (fused add in clusters only)
  kPairCtas = 2048,  // CTAs are launched two by two (one row a CTA, an even number of them)
  kLean = 4096,  // fewer registers, so that one CTA more fits on an SM (kKeepOutput, clusters, 2
                 // vectors; the fused add has no more than those)
  kReadOnce = 8192,  // L2 gives x up first (kStaged, 8 vectors; not for the fused add, which writes
                     // over it)
  kKeepAhead = 16384,  // L2 gives up last what kPrefetchAhead asks for (not with kCached in the
                       // plain norm)
  kTwoPerSm = 32768,   // at the most two CTAs an SM, by shared memory that nobody uses (kStaged)
};

// kPairCtas is for where CTAs go. Of single ones an SM gets as many as it has room for when its
// turn comes, pairs are spread evenly and in the same order in every call: at 256 tokens that is
// worth 3 to 7 %, and 15 to 18 % where rows come back to the SM that had them in the call before,
// as each half of L2 keeps what the SMs beside it read (moving the bytes only, 6144 to 8192 wide,
// H200, 2026-11-26, docs/notes/2026-11-26-rows-that-come-back.md).
inline constexpr int kPair = 2;

// kFillGpu is for the grid behind this one. The GPU deals a grid's clusters out to its GPCs in
// turn, beginning with the one after the last that it dealt to: so which SMs get a second tile of
// the next product depends on how many clusters were launched before, and from some beginnings some
// products take 6 to 12 % longer. With every SM filled alike it begins at GPC 0 or 7, with one to
// seven clusters more at GPC 1 to 7, whatever came before: which is a good one differs from card to
// card and is timed (first_gpc.py; H200, 2026-11-26 and 27,
// docs/notes/2026-11-27-a-gpc-for-each-card.md). Filled with 2 an SM it is at 0 or 7, with 8
// anywhere.
inline constexpr int kFillCtasPerSm = 4;
// What a filled launch asks for as shared memory's share of L1, in percent: 16 KiB, as the
// reduction of a split product before it has. With another share a CTA would wait until its SM is
// empty, and the order in which SMs become empty is chance.
inline constexpr int kFillSharedPercent = 7;

// How far kPrefetchAhead reaches: what DRAM delivers in about a microsecond.
// H200 2026-11-22: 4 MiB beats 2 and 8 MiB at 4096 tokens of every width.
inline constexpr int64_t kAheadBytes = 4 << 20;
// The same with kKeepAhead: 2 and 4 MiB are level, 8 loses up to 5 %. It lasts longer than the
// call: lines stay kept when they were read, and other data behind the norm has less of L2, so that
// 16 MB are read again as fast as before, 32 MB 9 to 26 % slower. Norms and products in a row do
// not feel it (H200, 2026-11-28, docs/notes/2026-11-28-requests-kept.md).
inline constexpr int64_t kKeptAheadBytes = 3 << 20;
// More than a third of the shared memory of an SM of sm_90 and sm_100.
inline constexpr int32_t kTwoPerSmBytes = 80 << 10;

// Which operator a rule is for: the plain norm moves half the bytes.
enum RuleOp : int32_t { kAnyOp = 0, kAddOp = 1, kPlainOp = 2 };

struct LaunchConfig {
  int32_t vec_bytes;        // 16, or 32 on sm_100 and later
  int32_t vecs_per_thread;  // vectors of the row a thread: 1, 2 or 4; staged 4 or 8
  int32_t rows_per_cta;     // rows that share a CTA
  int32_t ctas_per_row;     // CTAs of a cluster that share a row: 1, 2, 4 or 8
  int32_t options;          // LaunchOption bits
};

struct LaunchRule {
  int32_t min_sm, max_sm;  // 10 x major + minor
  RuleOp op;
  int64_t max_row_bytes;
  int64_t max_tokens;
  LaunchConfig config;
  const char* evidence;  // where the choice comes from
};

// The shape of one launch, derived from a configuration and a row.
struct LaunchShape {
  int32_t vecs_per_row;
  int32_t threads_per_row;  // in one CTA, whole warps
  int32_t threads_per_cta;
  int32_t chunks_per_row;  // warp-wide groups of vectors, over all CTAs of the row
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline constexpr int kRereadThreads = 1024;

constexpr LaunchShape launch_shape(const LaunchConfig& config, int64_t row_bytes) {
  const int64_t vecs = ceil_div(row_bytes, config.vec_bytes);
  if (config.options & kReread) {
    return {static_cast<int32_t>(vecs), kRereadThreads, kRereadThreads,
            static_cast<int32_t>(ceil_div(vecs, kWarp))};
  }
  const int64_t threads = ceil_div(vecs, int64_t{config.vecs_per_thread} * config.ctas_per_row);
  const int64_t whole_warps = ceil_div(threads, kWarp) * kWarp;
  const int64_t chunks = whole_warps / kWarp * config.vecs_per_thread * config.ctas_per_row;
  return {static_cast<int32_t>(vecs), static_cast<int32_t>(whole_warps),
          static_cast<int32_t>(whole_warps * config.rows_per_cta), static_cast<int32_t>(chunks)};
}

// The kernels hold a row as float32 in registers: up to 32 values a thread, which leaves room for
// 1024 threads.
inline constexpr int32_t kMaxThreadsPerCta = 1024;
inline constexpr int32_t kThreadsPerSm = 2048;
inline constexpr int32_t kNarrowVecs = 2;
// Staged rows, x and residual: what an SM of sm_90 and sm_100 has for a CTA, less the chunk sums.
inline constexpr int32_t kMaxStageBytes = 224 << 10;

// Shared memory for the rows of a CTA while they wait for their sum.
constexpr int32_t stage_bytes(const LaunchConfig& config, const LaunchShape& shape, bool add) {
  if ((config.options & kStaged) == 0) return 0;
  return shape.threads_per_cta * config.vecs_per_thread * config.vec_bytes * (add ? 2 : 1);
}

// Whether a kernel for this configuration exists and can hold the row.
constexpr bool is_valid(const LaunchConfig& config, int64_t row_bytes) {
  const int32_t vecs = config.vecs_per_thread;
  const int32_t ctas = config.ctas_per_row;
  const bool narrow = config.options & kNarrow;
  const bool staged = config.options & kStaged;
  const bool cached = config.options & kCached;
  const bool kept = config.options & kKeepOutput;
  const bool lean = config.options & kLean;
  const bool once = config.options & kReadOnce;
  const bool known_width =
      staged           ? config.vec_bytes == 16 && (vecs == 4 || (vecs == 8 && !kept))
      : cached || kept ? config.vec_bytes == 16 && (vecs == 2 || vecs == 4)
                       : (config.vec_bytes == 16 && (vecs == 1 || vecs == 2 || vecs == 4)) ||
                             (config.vec_bytes == 32 && (vecs == 1 || vecs == 2));
  const bool known_split =
      ctas == 1 || ((ctas == 2 || ctas == 4 || ctas == 8) && config.rows_per_cta == 1);
  if (!known_width || !known_split || config.rows_per_cta < 1) return false;
  const bool own_cta = ctas == 1 && config.rows_per_cta == 1;
  if ((staged || cached) && (narrow || !own_cta || (staged && cached))) return false;
  if ((config.options & kPairCtas) && (!own_cta || (config.options & kFillGpu))) return false;
  if (lean && (!kept || vecs != 2 || ctas == 1)) return false;
  if (once && (!staged || vecs != 8)) return false;
  if ((config.options & kTwoPerSm) && !staged) return false;
  if ((config.options & kKeepAhead) && !(config.options & kPrefetchAhead)) return false;
  const LaunchShape shape = launch_shape(config, row_bytes);
  if (kept && (cached || narrow || config.rows_per_cta != 1 || vecs * ctas == 2)) return false;
  if (config.options & kReread) {
    return config.vec_bytes == 16 && vecs == 1 && ctas == 1 && config.rows_per_cta == 1;
  }
  if (narrow && (config.vec_bytes != 16 || vecs != kNarrowVecs)) return false;
  if (staged && stage_bytes(config, shape, true) > kMaxStageBytes) return false;
  // Rows of several warps meet at a named barrier each, and there are 15 beside the CTA's own.
  const bool barriers = shape.threads_per_row == kWarp || config.rows_per_cta <= 15;
  return barriers && shape.chunks_per_row <= kMaxSharedChunks &&
         shape.threads_per_cta <= kMaxThreadsPerCta;
}

// Accesses below 16 bytes, and any row that no rule takes.
constexpr LaunchConfig narrow_config(int32_t sm, int64_t row_bytes) {
  for (const int32_t ctas : {1, 2, 4, 8}) {
    const LaunchConfig config{16, kNarrowVecs, 1, ctas, kNarrow};
    if ((ctas == 1 || sm >= kFirstWithClusters) && is_valid(config, row_bytes)) return config;
  }
  return {16, 1, 1, 1, kReread};
}

#include "launch_rules_table.inc"

inline constexpr int kNumLaunchRules = sizeof(kLaunchRules) / sizeof(kLaunchRules[0]);

// The index of the first rule that matches, or -1.
constexpr int find_rule(int32_t sm, RuleOp op, int64_t row_bytes, int64_t num_tokens) {
  for (int i = 0; i < kNumLaunchRules; ++i) {
    const LaunchRule& rule = kLaunchRules[i];
    const bool same_op = rule.op == kAnyOp || rule.op == op;
    if (sm >= rule.min_sm && sm <= rule.max_sm && same_op && row_bytes <= rule.max_row_bytes &&
        num_tokens <= rule.max_tokens && is_valid(rule.config, row_bytes)) {
      return i;
    }
  }
  return -1;
}

struct LaunchChoice {
  int32_t rule;  // index in the table; -1: a narrow or re-reading kernel
  LaunchConfig config;
};

// What serves a call whose rows and weight allow accesses of `access_bytes`. A 32-byte rule serves
// rows that are aligned to 16 with twice the vectors.
constexpr LaunchChoice choose_launch(int32_t sm, RuleOp op, int64_t row_bytes, int64_t num_tokens,
                                     int32_t access_bytes) {
  const int rule = find_rule(sm, op, row_bytes, num_tokens);
  if (rule >= 0) {
    LaunchConfig config = kLaunchRules[rule].config;
    if (access_bytes < config.vec_bytes) {
      config.vecs_per_thread *= config.vec_bytes / 16;
      config.vec_bytes = 16;
    }
    if (access_bytes >= config.vec_bytes && is_valid(config, row_bytes)) return {rule, config};
  }
  return {-1, narrow_config(sm, row_bytes)};
}

}  // namespace hp_norm
