#include "instruction_sets.h"

#include <cstring>

#if defined(BERTHEAD_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace berthead {
namespace {

#if defined(BERTHEAD_AMX)
// Whether the processor has tile registers for int8 and bfloat16, and Linux lends them to this process.
// Source: Linux, Documentation/arch/x86/xstate.rst.
bool HasAmx() {
  constexpr unsigned kBF16Bit = 1u << 22, kTileBit = 1u << 24, kInt8Bit = 1u << 25;
  constexpr unsigned kAll = kBF16Bit | kTileBit | kInt8Bit;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAll) == kAll &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Kernels that were left out of this build are not usable.
void Add(const Kernels* kernels, std::vector<const Kernels*>& usable) {
  if (kernels) usable.push_back(kernels);
}

}  // namespace

std::vector<const Kernels*> UsableKernels() {
  std::vector<const Kernels*> usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (avx2) Add(&avx2_kernels, usable);
  if (avx512) Add(&avx512_kernels, usable);
  if (vnni) Add(&avx512_vnni_kernels, usable);
  if (bf16) Add(&avx512_bf16_kernels, usable);
#endif
#if defined(BERTHEAD_AMX)
  static const bool amx = HasAmx();
  if (bf16 && amx) Add(&avx512_amx_kernels, usable);
#endif
  return usable;
}

const Kernels* FindKernels(const char* name, int precision) {
  for (const Kernels* kernels : UsableKernels())
    if (strcmp(kernels->name, name) == 0 && (kernels->precisions >> precision & 1)) return kernels;
  return nullptr;
}

}  // namespace berthead
