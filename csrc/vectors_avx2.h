// Eight float32 numbers at once.

typedef __m256 V;
typedef __m256i VI;
enum { W = 8, MR = 6, NV = 2, NR = NV * W };

static inline VI first_(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline V load(const float* p, int n) { return _mm256_maskload_ps(p, first_(n)); }
static inline void store(float* p, V x) { _mm256_storeu_ps(p, x); }
static inline void store(float* p, V x, int n) { _mm256_maskstore_ps(p, first_(n), x); }
static inline V all(float x) { return _mm256_set1_ps(x); }
static inline V zero() { return _mm256_setzero_ps(); }
static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V div(V a, V b) { return _mm256_div_ps(a, b); }
static inline V root_of(V a) { return _mm256_sqrt_ps(a); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V larger(V a, V b) { return _mm256_max_ps(a, b); }
static inline V smaller(V a, V b) { return _mm256_min_ps(a, b); }
// a, its size at most that of the positive b.
static inline V bounded(V a, V b) { return larger(smaller(a, b), sub(zero(), b)); }
static inline V absolute(V a) { return _mm256_andnot_ps(all(-0.0f), a); }
static inline V with_sign(V a, V sign) { return _mm256_or_ps(a, _mm256_and_ps(sign, all(-0.0f))); }
static inline float sum(V a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float largest(V a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float smallest(V a) { return -largest(sub(zero(), a)); }
// The first n lanes of a, the others of b.
static inline V choose(V a, V b, int n) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(first_(n))); }
static inline V nearest(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V times_power(V a, V whole) {
  const VI bits = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits));
}
static inline V reciprocal(V a) { return div(all(1), a); }
static inline VI load_words(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline VI all_words(int32_t x) { return _mm256_set1_epi32(x); }
static inline V to_float(VI x) { return _mm256_cvtepi32_ps(x); }
static inline VI no_words() { return _mm256_setzero_si256(); }
static inline V as_float(VI x) { return _mm256_castsi256_ps(x); }
static inline VI pairs(VI c, VI a, VI b) { return _mm256_add_epi32(c, _mm256_madd_epi16(a, b)); }
static inline VI plus(VI a, VI b) { return _mm256_add_epi32(a, b); }
static inline VI times(VI a, VI b) { return _mm256_mullo_epi32(a, b); }
static inline VI exclusive_or(VI a, VI b) { return _mm256_xor_si256(a, b); }
static inline VI shifted(VI a, int bits) { return _mm256_srli_epi32(a, bits); }
static inline VI counting() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
static inline V where_below(VI a, VI b, V x, V y) {
  return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)));
}
static inline V where_positive(V a, V x) { return _mm256_and_ps(_mm256_cmp_ps(a, zero(), _CMP_GT_OQ), x); }
// Numbers from 0 to 255.
static inline void store_shorts(int16_t* p, V x) {
  const VI whole = _mm256_cvtps_epi32(x);
  const VI packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
