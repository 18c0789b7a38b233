// argus_native::cpu_features() -> str: what the doctor shows about this CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <sstream>
#include <string>

#include "common/cpu/matmul.h"
#include "common/cpu/simd.h"

#if ARGUS_X86
#include <cpuid.h>
#endif

namespace {

#if ARGUS_X86
struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool bit(unsigned word, int position) {
  return ((word >> position) & 1u) != 0;
}
#endif

// "isa=avx512 bfloat16=amx instructions=avx2,fma,f16c,avx512f,... threads=2"; `isa` is the level that the
// kernels run at, `bfloat16` the instructions that multiply bfloat16.
std::string cpu_features() {
  std::ostringstream text;
  text << "isa=" << argus::isa_name(argus::isa()) << " bfloat16=" << argus::matmul::bfloat16_unit_name()
       << " instructions=";
#if ARGUS_X86
  const char* separator = "";
  auto name = [&](const char* feature, bool present) {
    if (!present) return;
    text << separator << feature;
    separator = ",";
  };
  __builtin_cpu_init();
  name("avx2", __builtin_cpu_supports("avx2") != 0);
  name("fma", __builtin_cpu_supports("fma") != 0);
  name("avx512f", __builtin_cpu_supports("avx512f") != 0);
  name("avx512bw", __builtin_cpu_supports("avx512bw") != 0);
  name("avx512vl", __builtin_cpu_supports("avx512vl") != 0);
  name("avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0);
  const Leaf seven(7, 0), seven_one(7, 1);
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  name("avx512_bf16", avx512 && bit(seven_one.eax, 5));
  name("avx512_fp16", avx512 && bit(seven.edx, 23));
  name("amx_tile", bit(seven.edx, 24));
  name("amx_bf16", bit(seven.edx, 22));
  name("amx_int8", bit(seven.edx, 25));
#else
  text << "portable";
#endif
  text << " threads=" << torch::stable::get_num_threads();
  return text.str();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("cpu_features() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_features", TORCH_BOX(&cpu_features));
}
