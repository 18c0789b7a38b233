// Run-time choice of the CPU instruction set.
//
// A kernel is written once, as an always_inline function over plain loops or GCC vector types, and compiled
// for each level by ForEachIsa; this machine's level is detected once. ARGUS_CPU_ISA=portable|avx2|avx512
// lowers it, for tests and for bisecting (matmul.h has more levels).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace argus {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

#if defined(__x86_64__)
#define ARGUS_X86 1
#define ARGUS_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi2"), flatten))
#define ARGUS_TARGET_AVX512                                                                               \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512"), \
                 flatten))
#else
#define ARGUS_X86 0
#define ARGUS_TARGET_AVX2
#define ARGUS_TARGET_AVX512
#endif

#define ARGUS_INLINE inline __attribute__((always_inline))
// Stands after a lambda's parameters. Without it the compiler may keep one copy of the lambda, compiled for
// the portable level, and call it from every level.
#define ARGUS_INLINE_LAMBDA __attribute__((always_inline))

inline Isa machine_isa() {
#if ARGUS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

inline Isa isa_from_environment() {
  const Isa machine = machine_isa();
  const char* asked = std::getenv("ARGUS_CPU_ISA");
  Isa wanted = machine;
  if (asked != nullptr && std::strcmp(asked, "portable") == 0) wanted = Isa::portable;
  if (asked != nullptr && std::strcmp(asked, "avx2") == 0) wanted = Isa::avx2;
  return static_cast<int>(wanted) < static_cast<int>(machine) ? wanted : machine;
}

inline Isa isa() {
  static const Isa level = isa_from_environment();
  return level;
}

inline const char* isa_name(Isa level) {
  switch (level) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

// Compiles `Body`, an always_inline function, for every level and calls the one of this machine.
template <auto Body>
struct ForEachIsa {
  template <class... Arguments>
  ARGUS_TARGET_AVX512 static void avx512(Arguments... arguments) {
    Body(arguments...);
  }
  template <class... Arguments>
  ARGUS_TARGET_AVX2 static void avx2(Arguments... arguments) {
    Body(arguments...);
  }
  template <class... Arguments>
  static void portable(Arguments... arguments) {
    Body(arguments...);
  }

  template <class... Arguments>
  static void call(Arguments... arguments) {
#if defined(ARGUS_ONE_CLONE)
    // For the sanitizers: all levels are compiled from the same source, so one of them is enough.
    portable(arguments...);
#else
    switch (isa()) {
      case Isa::avx512:
        return avx512(arguments...);
      case Isa::avx2:
        return avx2(arguments...);
      default:
        return portable(arguments...);
    }
#endif
  }
};

}  // namespace argus
