// The launch rules as a C interface, for Python (ctypes) on machines with and without a GPU.
#include <cstdint>

#include "cuda/launch_rules.h"

#define HP_NORM_EXPORT extern "C" __attribute__((visibility("default")))

HP_NORM_EXPORT int32_t hp_norm_num_rules() { return hp_norm::kNumLaunchRules; }

// Copies rule `index` and returns its evidence.
HP_NORM_EXPORT const char* hp_norm_rule(int32_t index, hp_norm::LaunchRule* rule) {
  *rule = hp_norm::kLaunchRules[index];
  return rule->evidence;
}

HP_NORM_EXPORT void hp_norm_choose_launch(int32_t sm, int32_t op, int64_t row_bytes,
                                          int64_t num_tokens, int32_t access_bytes,
                                          hp_norm::LaunchChoice* choice) {
  *choice = hp_norm::choose_launch(sm, static_cast<hp_norm::RuleOp>(op), row_bytes, num_tokens,
                                   access_bytes);
}

HP_NORM_EXPORT int32_t hp_norm_is_valid(const hp_norm::LaunchConfig* config, int64_t row_bytes) {
  return hp_norm::is_valid(*config, row_bytes);
}

HP_NORM_EXPORT void hp_norm_launch_shape(const hp_norm::LaunchConfig* config, int64_t row_bytes,
                                         hp_norm::LaunchShape* shape) {
  *shape = hp_norm::launch_shape(*config, row_bytes);
}
