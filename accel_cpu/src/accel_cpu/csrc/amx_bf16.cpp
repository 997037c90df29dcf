#if defined(__x86_64__)
#if !defined(__AMX_TILE__) || !defined(__AMX_BF16__) || !defined(__AVX512BF16__) || \
    !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "compile this file with the flags listed in kernels.h"
#endif

#include "vec_avx512.h"  // first: the others are written over its vectors

#include "amx_tile.h"

namespace accel_cpu {

void linear_part_bf16_tiles(const LinearArgs& args, const Block& block,
                            const LinearScratch& scratch) {
  linear_part_by<bf16>(args, block, scratch, product_of_tiles);
}

}  // namespace accel_cpu

#endif
