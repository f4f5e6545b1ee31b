// Accesses to global and shared memory: whole vectors under a cache policy, copies that do not
// wait, and pieces of any width. No dtype: vectors travel as 32-bit words.
#pragma once

#include <cstdint>
#include <type_traits>

namespace hp_norm {

// Which of its lines L2 gives up, for all lines of an access, as createpolicy encodes it. To say
// normal in so many words is not the same as to say nothing: stores were 2 to 6 % slower where the
// rows fill half of L2 and more; requests ahead are level (H200, 2026-11-26 and 28).
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000;
inline constexpr uint64_t kEvictLast = 0x14f0000000000000;

// How the vectors of a row are read and written.
enum class RowAccess {
  kStreamed,  // whole, past L1: what is read once
  kCached,    // whole, with the default cache policy
  kKept,      // whole, past L1, and given up last by L2 (stores)
  kNarrow,    // in pieces of any width
};

// `first`, and an instruction under a predicate, so that the kernel has no branch here; `valid` is
// the operand that says whether it runs. A macro, since the text of an asm has to be a literal.
#define HP_NORM_IF(valid, first, instruction) \
  "{\n.reg .pred p;\nsetp.ne.u32 p, " valid ", 0;\n" first "\n@p " instruction ";\n}"
#define HP_NORM_ZERO_4 "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
#define HP_NORM_ZERO_8 HP_NORM_ZERO_4 "mov.b32 %4, 0; mov.b32 %5, 0; mov.b32 %6, 0; mov.b32 %7, 0;"

// Reads what is `valid`; the rest is zero. `volatile` keeps the loads behind griddepcontrol.wait.
template <RowAccess kAccess>
__device__ __forceinline__ void load_16_bytes(uint32_t* w, const void* from, bool valid) {
  const auto runs = static_cast<uint32_t>(valid);
  if constexpr (kAccess == RowAccess::kCached) {
    asm volatile(HP_NORM_IF("%5", HP_NORM_ZERO_4, "ld.global.v4.b32 {%0, %1, %2, %3}, [%4]")
                 : "=&r"(w[0]), "=&r"(w[1]), "=&r"(w[2]), "=&r"(w[3])
                 : "l"(from), "r"(runs)
                 : "memory");
  } else {
    asm volatile(
        HP_NORM_IF("%5", HP_NORM_ZERO_4, "ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4]")
        : "=&r"(w[0]), "=&r"(w[1]), "=&r"(w[2]), "=&r"(w[3])
        : "l"(from), "r"(runs)
        : "memory");
  }
}

// The same with the default policy, `offset` bytes behind `from`; what is not valid is undefined.
__device__ __forceinline__ void load_16_bytes_if(uint32_t* w, const void* from, int offset,
                                                 bool valid) {
  asm volatile(HP_NORM_IF("%5", "", "ld.global.v4.b32 {%0, %1, %2, %3}, [%4]")
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "l"(static_cast<const char*>(from) + offset), "r"(static_cast<uint32_t>(valid))
               : "memory");
}

// Writes what is `valid`.
template <RowAccess kAccess>
__device__ __forceinline__ void store_16_bytes(void* to, const uint32_t* w, bool valid) {
  const auto runs = static_cast<uint32_t>(valid);
  if constexpr (kAccess == RowAccess::kCached) {
    asm volatile(HP_NORM_IF("%5", "", "st.global.v4.b32 [%0], {%1, %2, %3, %4}")::"l"(to),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(runs)
                 : "memory");
  } else if constexpr (kAccess == RowAccess::kKept) {
    asm volatile(HP_NORM_IF("%5", "",
                            "st.global.L1::no_allocate.L2::cache_hint.v4.b32 "
                            "[%0], {%1, %2, %3, %4}, %6")::"l"(to),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(runs), "l"(kEvictLast)
                 : "memory");
  } else {
    asm volatile(
        HP_NORM_IF("%5", "", "st.global.L1::no_allocate.v4.b32 [%0], {%1, %2, %3, %4}")::"l"(to),
        "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(runs)
        : "memory");
  }
}

// 32 bytes in one access from sm_100 on. Before that two of 16, so that the 32-byte path runs, and
// is tested, on GPUs without 256-bit accesses.
__device__ __forceinline__ void load_32_bytes(uint32_t* w, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 1000
  asm volatile(HP_NORM_IF("%9", HP_NORM_ZERO_8,
                          "ld.global.L1::no_allocate.v8.b32 "
                          "{%0, %1, %2, %3, %4, %5, %6, %7}, [%8]")
               : "=&r"(w[0]), "=&r"(w[1]), "=&r"(w[2]), "=&r"(w[3]), "=&r"(w[4]), "=&r"(w[5]),
                 "=&r"(w[6]), "=&r"(w[7])
               : "l"(from), "r"(static_cast<uint32_t>(valid))
               : "memory");
#else
  load_16_bytes<RowAccess::kStreamed>(w, from, valid);
  load_16_bytes<RowAccess::kStreamed>(w + 4, static_cast<const char*>(from) + 16, valid);
#endif
}

__device__ __forceinline__ void store_32_bytes(void* to, const uint32_t* w, bool valid) {
#if __CUDA_ARCH__ >= 1000
  asm volatile(HP_NORM_IF("%9", "",
                          "st.global.L1::no_allocate.v8.b32 "
                          "[%0], {%1, %2, %3, %4, %5, %6, %7, %8}")::"l"(to),
               "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(w[4]), "r"(w[5]), "r"(w[6]),
               "r"(w[7]), "r"(static_cast<uint32_t>(valid))
               : "memory");
#else
  store_16_bytes<RowAccess::kStreamed>(to, w, valid);
  store_16_bytes<RowAccess::kStreamed>(static_cast<char*>(to) + 16, w + 4, valid);
#endif
}

#undef HP_NORM_IF
#undef HP_NORM_ZERO_4
#undef HP_NORM_ZERO_8

template <RowAccess kAccess, int kWords>
__device__ __forceinline__ void load_wide(uint32_t (&words)[kWords], const void* from, bool valid) {
  static_assert(kWords == 4 || kWords == 8, "a vector is 16 or 32 bytes");
  if constexpr (kWords == 8) {
    load_32_bytes(words, from, valid);
  } else {
    load_16_bytes<kAccess>(words, from, valid);
  }
}

template <RowAccess kAccess, int kWords>
__device__ __forceinline__ void store_wide(void* to, const uint32_t (&words)[kWords], bool valid) {
  static_assert(kWords == 4 || kWords == 8, "a vector is 16 or 32 bytes");
  if constexpr (kWords == 8) {
    store_32_bytes(to, words, valid);
  } else {
    store_16_bytes<kAccess>(to, words, valid);
  }
}

// 16 bytes from global to shared memory, past L1 and the registers; zeros if not `valid`. The
// thread that copied sees them after its own wait, other threads after a barrier behind that.
// kOnce: L2 gives the line up first.
template <bool kOnce>
__device__ __forceinline__ void copy_to_shared_async(uint4* to, const void* from, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  if constexpr (kOnce) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(address),
                 "l"(from), "r"(bytes), "l"(kEvictFirst)
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
  }
}
__device__ __forceinline__ void commit_async_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of the groups committed are left.
template <int kPending>
__device__ __forceinline__ void wait_for_async_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Asks L2 for `bytes` bytes, both multiples of 16, and waits for nothing. It reads no value, so it
// may come before griddepcontrol.wait. By one thread: a prefetch of its own line by every thread
// made 512 to 2048 tokens of 1024 wide 20-40 % slower (H200, 2026-11-24).
template <bool kNamesPolicy = false>
__device__ __forceinline__ void prefetch_to_l2(const void* from, uint32_t bytes,
                                               uint64_t policy = kEvictNormal) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kNamesPolicy) {
    asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(from),
                 "r"(bytes), "l"(policy)
                 : "memory");
  } else {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
  }
#endif
}

// One access of at most 16 bytes, for rows whose address, stride or size allows no more.
template <int kBytes>
using Piece = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;

// Moves the first `valid_bytes` (a multiple of kPiece) of a vector, kPiece bytes an access; what
// lies past them reads as zero and is not written.
template <int kPiece, int kWords>
__device__ __forceinline__ void load_pieces(uint32_t (&words)[kWords], const void* from,
                                            int valid_bytes) {
  using Type = Piece<kPiece>;
  alignas(16) Type pieces[kWords * 4 / kPiece];
#pragma unroll
  for (int i = 0; i < kWords * 4 / kPiece; ++i) {
    pieces[i] = i * kPiece < valid_bytes ? static_cast<const Type*>(from)[i] : Type{};
  }
  __builtin_memcpy(words, pieces, sizeof(words));
}

template <int kPiece, int kWords>
__device__ __forceinline__ void store_pieces(void* to, const uint32_t (&words)[kWords],
                                             int valid_bytes) {
  using Type = Piece<kPiece>;
  alignas(16) Type pieces[kWords * 4 / kPiece];
  __builtin_memcpy(pieces, words, sizeof(words));
#pragma unroll
  for (int i = 0; i < kWords * 4 / kPiece; ++i) {
    if (i * kPiece < valid_bytes) static_cast<Type*>(to)[i] = pieces[i];
  }
}

template <int kWords>
__device__ __forceinline__ void load_narrow(uint32_t (&words)[kWords], const void* from,
                                            int valid_bytes, int access_bytes) {
  switch (access_bytes) {
    case 16: return load_pieces<16>(words, from, valid_bytes);
    case 8: return load_pieces<8>(words, from, valid_bytes);
    case 4: return load_pieces<4>(words, from, valid_bytes);
    default: return load_pieces<2>(words, from, valid_bytes);
  }
}

template <int kWords>
__device__ __forceinline__ void store_narrow(void* to, const uint32_t (&words)[kWords],
                                             int valid_bytes, int access_bytes) {
  switch (access_bytes) {
    case 16: return store_pieces<16>(to, words, valid_bytes);
    case 8: return store_pieces<8>(to, words, valid_bytes);
    case 4: return store_pieces<4>(to, words, valid_bytes);
    default: return store_pieces<2>(to, words, valid_bytes);
  }
}

}  // namespace hp_norm
