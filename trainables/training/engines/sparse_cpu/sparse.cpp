// Convolutions that compute only with the weights that a mask keeps, and BatchNorm fused with what follows it.
//
// Activations are stored in lanes, [blocks][channels][height][width][lanes]: as many images of a batch are adjacent as
// a vector register holds floats. One kept weight times one position is thus one multiply-add of a whole register,
// wherever the weight is in the kernel.
//
// A layer's kept weights are sorted by the group of channels that they read and, within a group, by the channel that
// they write (pointer, as in compressed sparse rows). The values that a tile of 8 positions reads of one group fit into
// the L1 cache, and are reread from there for every written channel. Each weight has its position among the layer's
// weights (index) and the distance, in the padded source, from a tile's first position to the value that it multiplies
// (offset). If a channel and the next one read the same values (paired), as they do in a layer without a mask, both are
// computed together, so that each value is loaded once for both.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// The compiler would split a vector wider than the target's registers through memory, which is slower than scalar code.
#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else  // SSE, NEON
constexpr int lanes = 4;
#endif
constexpr int tile = 8;  // enough independent sums to hide the latency of a multiply-add
constexpr int slots = 4;  // the same for sums over all positions

typedef float vec __attribute__((vector_size(lanes * sizeof(float))));

struct Taps {
    const int32_t *pointer, *offset, *index;
    const uint8_t* paired;
    int64_t groups;
};

struct Activations {
    vec* data;
    int64_t blocks, channels, height, width;
    int64_t positions() const { return height * width; }
    int64_t size() const { return channels * height * width; }  // of a block
};

inline vec splat(float value) { return vec{} + value; }

// Copies block `b` into the middle of `out`, whose border of `padding` positions stays zero.
void pad(const Activations& from, int64_t b, int64_t padding, vec* out) {
    const int64_t rows = from.height + 2 * padding, row = from.width + 2 * padding;
    const vec* block = from.data + b * from.size();
    for (int64_t c = 0; c < from.channels; ++c)
        for (int64_t y = 0; y < from.height; ++y)
            memcpy(out + (c * rows + y + padding) * row + padding, block + (c * from.height + y) * from.width,
                   from.width * sizeof(vec));
}

// Reads a value that `C` channels use. With a constant step, the compiler would fold the load into each channel's
// multiply-add, since that costs no extra instruction. But a load takes as long as a multiply-add, so the volatile read
// makes the compiler load the value only once.
template <int C>
inline vec read(const vec* from) {
    if (C == 1) return *from;
    return *const_cast<const volatile vec*>(from);
}

// Adds to `C` channels at `T` positions the products of `count` kept weights with the values that they read. The sums
// start at 0 if `fresh`.
template <int T, int C, class Step>
[[gnu::noinline]] void weighted(const vec* __restrict source, Step step, vec* __restrict target, int64_t target_step,
                                int64_t channel, const int32_t* __restrict offset, const float* __restrict weight,
                                int64_t count, bool fresh) {
    vec sum[C][T];
    for (int c = 0; c < C; ++c)
        for (int t = 0; t < T; ++t) sum[c][t] = fresh ? vec{} : target[c * channel + t * target_step];
    for (int64_t k = 0; k < count; ++k) {
        const vec* from = source + offset[k];
        vec w[C];
        for (int c = 0; c < C; ++c) w[c] = splat(weight[c * count + k]);
        for (int t = 0; t < T; ++t) {
            const vec x = read<C>(from + t * step);
            for (int c = 0; c < C; ++c) sum[c][t] += w[c] * x;
        }
    }
    for (int c = 0; c < C; ++c)
        for (int t = 0; t < T; ++t) {
            vec* to = target + c * channel + t * target_step;
            *to = sum[c][t];
            if (fresh) __builtin_prefetch(to + T * target_step, 1);  // the next tile is written there
        }
}

// Adds to each kept weight's sum the products of the gradients at `T` positions with the values it multiplied there.
template <int T, int C, class Step>
[[gnu::noinline]] void correlated(const vec* __restrict source, Step step, const vec* __restrict gradient,
                                  int64_t channel, const int32_t* __restrict offset, vec* __restrict sum,
                                  int64_t count) {
    vec g[C][T];
    for (int c = 0; c < C; ++c)
        for (int t = 0; t < T; ++t) {
            const vec* from = gradient + c * channel + t;
            g[c][t] = *from;
            __builtin_prefetch(from + T);
        }
    for (int64_t k = 0; k < count; ++k) {
        const vec* from = source + offset[k];
        vec even[C], odd[C];
        for (int c = 0; c < C; ++c) even[c] = sum[c * count + k], odd[c] = vec{};
        for (int t = 0; t < T; ++t) {
            const vec x = read<C>(from + t * step);
            for (int c = 0; c < C; ++c) (t & 1 ? odd[c] : even[c]) += g[c][t] * x;
        }
        for (int c = 0; c < C; ++c) sum[c * count + k] = even[c] + odd[c];
    }
}

// Calls `each(number, channel, first, count)` for every channel, or once for two paired channels (number = 2), with the
// first weight of the channel and the number of its weights. `part` is the first of the channels' entries in the list.
template <class Each>
inline void channelwise(const Taps& taps, int64_t part, int64_t channels, const Each& each) {
    for (int64_t c = 0; c < channels;) {
        const int32_t first = taps.pointer[part + c], count = taps.pointer[part + c + 1] - first;
        if (taps.paired[part + c]) {
            each(std::integral_constant<int, 2>(), c, first, count);
            c += 2;
        } else
            each(std::integral_constant<int, 1>(), c++, first, count);
    }
}

// Calls `each(step)` with steps 1 and 2 as compile-time constants, which simplifies the addresses.
template <class Each>
inline void stepwise(int64_t step, const Each& each) {
    if (step == 1)
        each(std::integral_constant<int64_t, 1>());
    else if (step == 2)
        each(std::integral_constant<int64_t, 2>());
    else
        each(step);
}

// Splits the items evenly among threads: calls `work(thread, first, last)` on each, for the items in [first, last).
template <class Work>
void share(int64_t items, int64_t threads, const Work& work) {
    threads = std::max<int64_t>(1, std::min(threads, items));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t each = 0; each < threads; ++each) work(each, items * each / threads, items * (each + 1) / threads);
}

// Calls `each(size, x)` for the positions of a row, in tiles of 8, 4, 2 and 1.
template <class Tile>
inline void along(int64_t width, const Tile& each) {
    int64_t x = 0;
    for (; x + tile <= width; x += tile) each(std::integral_constant<int, tile>(), x);
    for (; x + 4 <= width; x += 4) each(std::integral_constant<int, 4>(), x);
    for (; x + 2 <= width; x += 2) each(std::integral_constant<int, 2>(), x);
    for (; x < width; ++x) each(std::integral_constant<int, 1>(), x);
}

// Calls `each(at, slot)` for all positions of a channel in all blocks; separate sums per slot hide latency.
template <class Each>
inline void through(int64_t blocks, int64_t stride, int64_t positions, const Each& each) {
    for (int64_t b = 0; b < blocks; ++b) {
        int64_t at = b * stride;
        const int64_t end = at + positions;
        for (; at + slots <= end; at += slots)
            for (int slot = 0; slot < slots; ++slot) each(at + slot, slot);
        for (; at < end; ++at) each(at, 0);
    }
}

inline float total(const vec* sums) {
    float all = 0;
    for (int lane = 0; lane < lanes; ++lane)
        for (int slot = 0; slot < slots; ++slot) all += sums[slot][lane];
    return all;
}

// Comparisons with 0 let NaN pass, forwards and backwards: a network that is no longer a number must not look sound.
inline vec relu(const vec& x) { return x <= 0 ? vec{} : x; }

// to = max(0, from * scale + shift + add), for all positions of a channel in all blocks. Without `add` if it is null,
// without the max if not `rectified`.
inline void rescale(const vec* from, const vec* add, float scale, float shift, bool rectified, vec* to, int64_t blocks,
                    int64_t stride, int64_t positions) {
    const vec scales = splat(scale), shifts = splat(shift);
    through(blocks, stride, positions, [&](int64_t at, int) {
        vec y = from[at] * scales + shifts;
        if (add) y += add[at];
        to[at] = rectified ? relu(y) : y;
    });
}

}  // namespace

extern "C" {

extern const int32_t register_lanes = lanes;

// out = max(0, (x - mean) * scale + shift + residual); `residual` and `out` have the shape of x. Without the residual if
// it is null, without the max if not `rectified`. In training the statistics are each channel's own, over all images and
// positions, and the running ones move towards them by the fraction `momentum`. Otherwise they are the running ones.
// Going channel by channel keeps a channel's values in the cache for the passes over them.
void normalize(Activations x, const vec* residual, const float* gamma, const float* beta, float eps, float momentum,
               bool rectified, bool training, vec* out, float* means, float* inverses, float* running_means,
               float* running_variances, int64_t threads) {
    const int64_t positions = x.positions(), stride = x.size(), blocks = x.blocks;
    const float count = blocks * positions * lanes;
    share(x.channels, threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
            const vec* from = x.data + c * positions;
            const auto scaled = [&](float scale, float shift) {
                rescale(from, residual ? residual + c * positions : nullptr, scale, shift, rectified,
                        out + c * positions, blocks, stride, positions);
            };
            if (!training) {
                const float scale = gamma[c] / std::sqrt(running_variances[c] + eps);
                scaled(scale, beta[c] - running_means[c] * scale);
                continue;
            }
            vec sums[slots] = {}, squares[slots] = {};
            through(blocks, stride, positions, [&](int64_t at, int slot) { sums[slot] += from[at]; });
            const float mean = total(sums) / count;
            through(blocks, stride, positions, [&](int64_t at, int slot) {
                const vec d = from[at] - mean;
                squares[slot] += d * d;
            });
            const float variance = total(squares) / count;
            const float inverse = 1 / std::sqrt(variance + eps);
            means[c] = mean, inverses[c] = inverse;
            running_means[c] += momentum * (mean - running_means[c]);
            running_variances[c] += momentum * (variance * (count / (count - 1)) - running_variances[c]);
            scaled(gamma[c] * inverse, beta[c] - mean * gamma[c] * inverse);
        }
    });
}

// The gradients of `normalize`. The gradient of its result is `gradient`, plus `more` unless that is null. If it was
// rectified and had a residual, its result `out` shows which values the ReLU passed, and `of_residual` is computed.
// Otherwise both are null: without a residual, `x` shows which values passed. All of these have the shape of x.
void normalize_gradients(const vec* gradient, const vec* more, Activations x, const vec* out, const float* gamma,
                         const float* beta, const float* means, const float* inverses, bool rectified, vec* of_x,
                         vec* of_residual, float* of_gamma, float* of_beta, int64_t threads) {
    const int64_t positions = x.positions(), stride = x.size(), blocks = x.blocks;
    const float count = blocks * positions * lanes;
    share(x.channels, threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
            const vec* g = gradient + c * positions;
            const vec* h = more ? more + c * positions : nullptr;
            const vec* from = x.data + c * positions;
            const auto all = [&](int64_t at) { return h ? g[at] + h[at] : g[at]; };
            const vec mean = splat(means[c]), inverse = splat(inverses[c]);
            vec* to = of_x + c * positions;
            // `passed` returns the gradient behind the ReLU at a position, `again` the same in the second pass.
            const auto through_both = [&](const auto& passed, const auto& again) {
                vec sums[slots] = {}, products[slots] = {};
                through(blocks, stride, positions, [&](int64_t at, int slot) {
                    const vec here = passed(at);
                    sums[slot] += here;
                    products[slot] += here * (from[at] - mean);
                });
                of_beta[c] = total(sums);
                of_gamma[c] = total(products) * inverses[c];
                const vec scale = inverse * gamma[c], level = splat(of_beta[c] / count);
                const vec slope = inverse * (of_gamma[c] / count);
                through(blocks, stride, positions, [&](int64_t at, int) {
                    to[at] = scale * (again(at) - level - slope * (from[at] - mean));
                });
            };
            if (!rectified)
                through_both(all, all);
            else if (out) {
                const vec* y = out + c * positions;
                vec* add = of_residual + c * positions;
                through_both([&](int64_t at) { return add[at] = y[at] <= 0 ? vec{} : all(at); },
                             [&](int64_t at) { return add[at]; });
            } else {
                const vec scale = splat(gamma[c] * inverses[c]);
                const vec shift = splat(beta[c] - means[c] * gamma[c] * inverses[c]);
                const auto positive = [&](int64_t at) { return from[at] * scale + shift <= 0 ? vec{} : all(at); };
                through_both(positive, positive);
            }
        }
    });
}

// target = sums of the kept weights times the values that they read.
//
// A forward pass steps through the source by `source_step` and writes every target position. A backward pass through a
// strided layer reads every source position; the taps of each residue class (row and column modulo `target_step`) write
// every `target_step`-th target position. `padded` holds one padded block per thread.
void sparse_convolve(Activations from, int64_t padding, int64_t source_step, Activations to, int64_t target_step,
                     Taps taps, const float* weights, int64_t threads, vec* padded) {
    const int64_t row = from.width + 2 * padding, room = from.channels * (from.height + 2 * padding) * row;
    const int64_t plane = to.positions();
    const int64_t residues = target_step * target_step;
    std::vector<float> kept(taps.pointer[residues * taps.groups * to.channels]);
    for (size_t k = 0; k < kept.size(); ++k) kept[k] = weights[taps.index[k]];
    stepwise(source_step, [&](auto step) {
        share(from.blocks, threads, [&](int64_t thread, int64_t first, int64_t last) {
            for (int64_t b = first; b < last; ++b) {
                vec* block = padded + thread * room;
                pad(from, b, padding, block);
                for (int64_t y = 0; y * target_step < to.height; ++y) {
                    for (int64_t each = 0; each < residues; ++each) {
                        const int64_t ty = y * target_step + each / target_step, rx = each % target_step;
                        if (ty >= to.height) break;
                        along((to.width - rx + target_step - 1) / target_step, [&](auto positions, int64_t x) {
                            const vec* seen = block + (y * row + x) * step;
                            vec* out = to.data + b * to.size() + ty * to.width + x * target_step + rx;
                            for (int64_t group = 0; group < taps.groups; ++group)
                                channelwise(taps, (each * taps.groups + group) * to.channels, to.channels,
                                            [&](auto channels, int64_t c, int64_t tap, int64_t count) {
                                                weighted<positions, channels>(seen, step, out + c * plane, target_step,
                                                                              plane, taps.offset + tap,
                                                                              kept.data() + tap, count, !group);
                                            });
                        });
                    }
                }
            }
        });
    });
}

// gradients[index] = sum over images and positions of gradient * source, for the kept weights. `step` is the stride.
void sparse_weight_gradients(Activations from, int64_t padding, int64_t step, Activations gradient, Taps taps,
                             float* gradients, int64_t threads, vec* padded) {
    const int64_t row = from.width + 2 * padding, room = from.channels * (from.height + 2 * padding) * row;
    const int64_t plane = gradient.positions();
    const int64_t count = taps.pointer[taps.groups * gradient.channels];
    std::vector<vec> sums(threads * count, vec{});
    stepwise(step, [&](auto step) {
        share(from.blocks, threads, [&](int64_t thread, int64_t first, int64_t last) {
            vec* sum = sums.data() + thread * count;
            for (int64_t b = first; b < last; ++b) {
                vec* block = padded + thread * room;
                pad(from, b, padding, block);
                for (int64_t y = 0; y < gradient.height; ++y)
                    along(gradient.width, [&](auto positions, int64_t x) {
                        const vec* seen = block + (y * row + x) * step;
                        const vec* here = gradient.data + b * gradient.size() + y * gradient.width + x;
                        for (int64_t group = 0; group < taps.groups; ++group)
                            channelwise(taps, group * gradient.channels, gradient.channels,
                                        [&](auto channels, int64_t c, int64_t tap, int64_t count) {
                                            correlated<positions, channels>(seen, step, here + c * plane, plane,
                                                                            taps.offset + tap, sum + tap, count);
                                        });
                    });
            }
        });
    });
    for (int64_t k = 0; k < count; ++k) {
        float all = 0;
        for (int64_t thread = 0; thread < threads; ++thread)
            for (int lane = 0; lane < lanes; ++lane) all += sums[thread * count + k][lane];
        gradients[taps.index[k]] = all;
    }
}

}
