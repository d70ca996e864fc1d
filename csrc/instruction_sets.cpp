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
// Whether the processor has tile registers for int8 and bfloat16, and Linux allows this process to use them.
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

KernelList FindUsable() {
  KernelList usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (avx2) usable.Add(&avx2_kernels);
  if (avx512) usable.Add(&avx512_kernels);
  if (vnni) usable.Add(&avx512_vnni_kernels);
  if (bf16) usable.Add(&avx512_bf16_kernels);
#endif
#if defined(BERTHEAD_AMX)
  if (bf16 && HasAmx()) usable.Add(&avx512_amx_kernels);
#endif
  return usable;
}

}  // namespace

const KernelList& UsableKernels() {
  static const KernelList usable = FindUsable();
  return usable;
}

const Kernels* FindKernels(const char* name, int precision) {
  for (const Kernels* kernels : UsableKernels())
    if (strcmp(kernels->name, name) == 0 && (kernels->precisions >> precision & 1)) return kernels;
  return nullptr;
}

}  // namespace berthead
