// Vectors of AVX2 and FMA: eight float32 or int32 lanes. The operations have the names of github.com/google/highway.

#include <cstdint>

#include "intrinsics.h"

namespace berthead {
namespace {

typedef __m256 VF;
typedef __m256i VI;

constexpr int kLanes = 8;
// A tile of a product is kMR rows by kNV vectors, kNR columns. Of the 16 registers 12 hold its sums, two the right
// side, and one a number of the left side.
constexpr int kMR = 6, kNV = 2, kNR = kNV * kLanes;

inline VI FirstN(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline VF Load(const float* p) { return _mm256_loadu_ps(p); }
// The first n lanes, n below kLanes; the other lanes are 0.
inline VF MaskedLoad(const float* p, int n) { return _mm256_maskload_ps(p, FirstN(n)); }
inline void Store(float* p, VF x) { _mm256_storeu_ps(p, x); }
inline void MaskedStore(float* p, VF x, int n) { _mm256_maskstore_ps(p, FirstN(n), x); }

inline VF Set(float x) { return _mm256_set1_ps(x); }
inline VF Zero() { return _mm256_setzero_ps(); }
inline VF Add(VF a, VF b) { return _mm256_add_ps(a, b); }
inline VF Sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
inline VF Mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
inline VF Div(VF a, VF b) { return _mm256_div_ps(a, b); }
inline VF Sqrt(VF a) { return _mm256_sqrt_ps(a); }
inline VF MulAdd(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
inline VF Max(VF a, VF b) { return _mm256_max_ps(a, b); }
inline VF Min(VF a, VF b) { return _mm256_min_ps(a, b); }
// Clamps a to [-b, b]; b is positive.
inline VF ClampAbs(VF a, VF b) { return Max(Min(a, b), Sub(Zero(), b)); }
inline VF Abs(VF a) { return _mm256_andnot_ps(Set(-0.0f), a); }
// The magnitude of one number with the sign of another.
inline VF CopySignToAbs(VF a, VF sign) { return _mm256_or_ps(a, _mm256_and_ps(sign, Set(-0.0f))); }

// Of all lanes.
inline float ReduceSum(VF a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float ReduceMax(VF a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float ReduceMin(VF a) { return -ReduceMax(Sub(Zero(), a)); }
// The first n lanes of a, the others of b.
inline VF FirstNElse(VF a, VF b, int n) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(FirstN(n))); }
// To the nearest integer.
inline VF Round(VF a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a times 2 to the power of an integer.
inline VF MulByPow2(VF a, VF whole) {
  const VI bits = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits));
}
inline VF Reciprocal(VF a) { return Div(Set(1), a); }

inline VI LoadI32(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline VI SetI32(int32_t x) { return _mm256_set1_epi32(x); }
inline VF ConvertToF32(VI x) { return _mm256_cvtepi32_ps(x); }
inline VI ZeroI32() { return _mm256_setzero_si256(); }
inline VF BitCastToF32(VI x) { return _mm256_castsi256_ps(x); }
// c plus, in each lane, the dot product of two int16.
inline VI DotI16(VI c, VI a, VI b) { return _mm256_add_epi32(c, _mm256_madd_epi16(a, b)); }
inline VI AddI32(VI a, VI b) { return _mm256_add_epi32(a, b); }
inline VI MulI32(VI a, VI b) { return _mm256_mullo_epi32(a, b); }
inline VI XorI32(VI a, VI b) { return _mm256_xor_si256(a, b); }
inline VI ShiftRightI32(VI a, int bits) { return _mm256_srli_epi32(a, bits); }
// 0, 1, 2 and so on.
inline VI IotaI32() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
// x where a < b, y elsewhere.
inline VF IfLessThenElse(VI a, VI b, VF x, VF y) {
  return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)));
}
// x where a > 0, 0 elsewhere.
inline VF IfPositiveThenElseZero(VF a, VF x) { return _mm256_and_ps(_mm256_cmp_ps(a, Zero(), _CMP_GT_OQ), x); }

// Numbers from 0 to 255, rounded.
inline void StoreI16(int16_t* p, VF x) {
  const VI whole = _mm256_cvtps_epi32(x);
  const VI packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}

}  // namespace
}  // namespace berthead
