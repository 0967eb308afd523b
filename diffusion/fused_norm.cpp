// GroupNorm, then by choice scale and shift (one each an image and channel), then by choice SiLU: in one operator, for
// float32 feature maps whose channels lie together in memory. See fused.py for the formulas and the Python side.
//
// Sums run over pixels in a fixed order whatever the number of threads, which share out images: the same bits always, and
// a batch of one image keeps one thread busy.

#ifndef _OPENMP
#error "compile with -fopenmp: without it torch runs parallel_for in one thread"
#endif

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using at::Tensor;
using std::int64_t;

constexpr int64_t BLOCK = 256;  // pixels summed in float32 before they are added up in float64

struct Shape {
  int64_t images, channels, pixels, groups;
  int64_t group_size() const { return channels / groups; }
  double count() const { return double(group_size()) * double(pixels); }
};

Shape shape_of(const Tensor& x, int64_t groups) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat && x.is_cpu(), "x must be a float32 feature map on the CPU");
  TORCH_CHECK(x.is_contiguous(at::MemoryFormat::ChannelsLast), "x must be channels_last");
  TORCH_CHECK(x.size(1) % groups == 0, "channels must be a multiple of groups");
  return {x.size(0), x.size(1), x.size(2) * x.size(3), groups};
}

// exp to two units in the last place of float32, in a form that compilers turn into vector instructions; nan stays nan.
inline float fast_exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float k = std::nearbyint(x * 1.44269504f);
  const float r = std::fma(k, -1.42860677e-6f, std::fma(k, -0.693145752f, x));
  float p = 1.98756912e-4f;
  p = std::fma(p, r, 1.39819994e-3f);
  p = std::fma(p, r, 8.33345186e-3f);
  p = std::fma(p, r, 4.16657962e-2f);
  p = std::fma(p, r, 1.66666657e-1f);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r * r, r) + 1.0f;
  union {
    int32_t i;
    float f;
  } power;
  power.i = (static_cast<int32_t>(k) + 127) << 23;
  return p * power.f;
}

inline float sigmoid(float y) { return 1.0f / (1.0f + fast_exp(-y)); }

// mean and 1 / sqrt(variance + eps) of every group of one image
void moments(const Shape& s, const float* x, double eps, float* mean, float* rstd) {
  std::vector<float> part(s.channels), centre(s.channels);
  std::vector<double> total(s.channels);
  const auto sum = [&](auto&& term) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t first = 0; first < s.pixels; first += BLOCK) {
      std::fill(part.begin(), part.end(), 0.0f);
      const int64_t stop = std::min(first + BLOCK, s.pixels);
      for (int64_t p = first; p < stop; ++p) {
        const float* row = x + p * s.channels;
        for (int64_t c = 0; c < s.channels; ++c) part[c] += term(row[c], c);
      }
      for (int64_t c = 0; c < s.channels; ++c) total[c] += part[c];
    }
  };
  const auto of_groups = [&](auto&& take) {
    for (int64_t g = 0; g < s.groups; ++g) {
      double all = 0;
      for (int64_t i = 0; i < s.group_size(); ++i) all += total[g * s.group_size() + i];
      take(g, all / s.count());
    }
  };
  sum([](float value, int64_t) { return value; });
  of_groups([&](int64_t g, double average) {
    mean[g] = float(average);
    for (int64_t i = 0; i < s.group_size(); ++i) centre[g * s.group_size() + i] = mean[g];
  });
  const float* centres = centre.data();
  sum([centres](float value, int64_t c) { return (value - centres[c]) * (value - centres[c]); });
  of_groups([&](int64_t g, double variance) { rstd[g] = float(1.0 / std::sqrt(variance + eps)); });
}

// y = a x + b in every channel of one image: the norm, the affine map and the scale and shift in one
void coefficients(const Shape& s, const float* weight, const float* bias, const float* emb, const float* mean,
                  const float* rstd, float* a, float* b) {
  for (int64_t c = 0; c < s.channels; ++c) {
    const int64_t g = c / s.group_size();
    const float scale = emb ? 1.0f + emb[c] : 1.0f, shift = emb ? emb[s.channels + c] : 0.0f;
    a[c] = rstd[g] * weight[c] * scale;
    b[c] = (bias[c] - mean[g] * rstd[g] * weight[c]) * scale + shift;
  }
}

void check(const Shape& s, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& emb) {
  TORCH_CHECK(weight.numel() == s.channels && bias.numel() == s.channels, "weight and bias must have one value a channel");
  TORCH_CHECK(!emb || (emb->dim() == 2 && emb->size(0) == s.images && emb->size(1) == 2 * s.channels),
              "emb must have two values an image and channel");
  for (const Tensor& one : {weight, bias, emb.value_or(weight)})
    TORCH_CHECK(one.scalar_type() == at::kFloat && one.is_contiguous(), "weight, bias and emb must be contiguous float32");
}

const float* pointer(const std::optional<Tensor>& emb, int64_t image, int64_t channels) {
  return emb ? emb->const_data_ptr<float>() + image * 2 * channels : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                           const std::optional<Tensor>& emb, int64_t groups, double eps, bool silu) {
  const Shape s = shape_of(x, groups);
  check(s, weight, bias, emb);
  Tensor out = at::empty_like(x), mean = at::empty({s.images, groups}, x.options().memory_format(std::nullopt));
  Tensor rstd = at::empty_like(mean);
  const float* in = x.const_data_ptr<float>();
  float* result = out.mutable_data_ptr<float>();
  at::parallel_for(0, s.images, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a(s.channels), b(s.channels);
    for (int64_t n = begin; n < end; ++n) {
      const float* image = in + n * s.pixels * s.channels;
      float* target = result + n * s.pixels * s.channels;
      float* means = mean.mutable_data_ptr<float>() + n * groups;
      float* rstds = rstd.mutable_data_ptr<float>() + n * groups;
      moments(s, image, eps, means, rstds);
      coefficients(s, weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), pointer(emb, n, s.channels), means,
                   rstds, a.data(), b.data());
      const float *slope = a.data(), *offset = b.data();
      for (int64_t p = 0; p < s.pixels; ++p) {
        const float* row = image + p * s.channels;
        float* to = target + p * s.channels;
        if (silu) {
          for (int64_t c = 0; c < s.channels; ++c) {
            const float y = slope[c] * row[c] + offset[c];
            to[c] = y * sigmoid(y);
          }
        } else {
          for (int64_t c = 0; c < s.channels; ++c) to[c] = slope[c] * row[c] + offset[c];
        }
      }
    }
  });
  return {out, mean, rstd};
}

// One pixel of the way back: dy = grad silu'(y), and its part of the sums over pixels of dy and of dy (x - mean).
template <bool silu>
void through_row(int64_t channels, const float* __restrict x, const float* __restrict grad,
                 const float* __restrict slope, const float* __restrict intercept, const float* __restrict middle,
                 float* __restrict dy, float* __restrict sum0, float* __restrict sum1) {
  for (int64_t c = 0; c < channels; ++c) {
    float d = grad[c];
    if constexpr (silu) {
      const float y = slope[c] * x[c] + intercept[c], s = sigmoid(y);
      d *= s * (1.0f + y * (1.0f - s));
    }
    dy[c] = d;
    sum0[c] += d;
    sum1[c] += d * (x[c] - middle[c]);
  }
}

// d(loss)/dx, and one row an image of d/dweight, d/dbias and d/demb
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                    const Tensor& bias, const std::optional<Tensor>& emb,
                                                    const Tensor& mean, const Tensor& rstd, int64_t groups, bool silu) {
  const Shape s = shape_of(x, groups);
  shape_of(grad, groups);
  TORCH_CHECK(grad.sizes() == x.sizes(), "grad must have the shape of x");
  check(s, weight, bias, emb);
  Tensor grad_x = at::empty_like(x);
  const auto plain = x.options().memory_format(std::nullopt);
  Tensor grad_weight = at::empty({s.images, s.channels}, plain), grad_bias = at::empty({s.images, s.channels}, plain);
  Tensor grad_emb = at::empty({s.images, emb ? 2 * s.channels : 0}, plain);
  const float *w = weight.const_data_ptr<float>(), *beta = bias.const_data_ptr<float>();
  at::parallel_for(0, s.images, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a(s.channels), b(s.channels), part0(s.channels), part1(s.channels), by_x(s.channels),
        constant(s.channels), centre(s.channels);
    std::vector<double> total0(s.channels), total1(s.channels);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t offset = n * s.pixels * s.channels;
      const float* image = x.const_data_ptr<float>() + offset;
      const float* incoming = grad.const_data_ptr<float>() + offset;
      float* dx = grad_x.mutable_data_ptr<float>() + offset;
      const float* means = mean.const_data_ptr<float>() + n * groups;
      const float* rstds = rstd.const_data_ptr<float>() + n * groups;
      const float* e = pointer(emb, n, s.channels);
      coefficients(s, w, beta, e, means, rstds, a.data(), b.data());
      for (int64_t c = 0; c < s.channels; ++c) centre[c] = means[c / s.group_size()];
      const float *slope = a.data(), *intercept = b.data(), *middle = centre.data();
      // dy = grad silu'(y), kept in dx; and per channel the sums of dy and of dy (x - mean)
      std::fill(total0.begin(), total0.end(), 0.0);
      std::fill(total1.begin(), total1.end(), 0.0);
      for (int64_t first = 0; first < s.pixels; first += BLOCK) {
        std::fill(part0.begin(), part0.end(), 0.0f);
        std::fill(part1.begin(), part1.end(), 0.0f);
        float *sum0 = part0.data(), *sum1 = part1.data();
        const int64_t stop = std::min(first + BLOCK, s.pixels);
        for (int64_t p = first; p < stop; ++p) {
          const int64_t at = p * s.channels;
          if (silu)
            through_row<true>(s.channels, image + at, incoming + at, slope, intercept, middle, dx + at, sum0, sum1);
          else
            through_row<false>(s.channels, image + at, incoming + at, slope, intercept, middle, dx + at, sum0, sum1);
        }
        for (int64_t c = 0; c < s.channels; ++c) {
          total0[c] += part0[c];
          total1[c] += part1[c];
        }
      }
      // dx = a dy - rstd (m1 + xhat m2), with m1, m2 the group's means of d/dxhat and of d/dxhat times xhat
      for (int64_t g = 0; g < s.groups; ++g) {
        double m1 = 0, m2 = 0;
        for (int64_t c = g * s.group_size(); c < (g + 1) * s.group_size(); ++c) {
          const double k = double(w[c]) * (e ? 1.0 + e[c] : 1.0);
          m1 += k * total0[c];
          m2 += k * total1[c] * rstds[g];
        }
        m1 /= s.count();
        m2 /= s.count();
        for (int64_t c = g * s.group_size(); c < (g + 1) * s.group_size(); ++c) {
          by_x[c] = float(-double(rstds[g]) * rstds[g] * m2);
          constant[c] = float(-double(rstds[g]) * m1);
        }
      }
      const float *linear = by_x.data(), *fixed = constant.data();
      for (int64_t p = 0; p < s.pixels; ++p) {
        const float* __restrict row = image + p * s.channels;
        float* __restrict to = dx + p * s.channels;
        for (int64_t c = 0; c < s.channels; ++c)
          to[c] = slope[c] * to[c] + linear[c] * (row[c] - middle[c]) + fixed[c];
      }
      float* dw = grad_weight.mutable_data_ptr<float>() + n * s.channels;
      float* db = grad_bias.mutable_data_ptr<float>() + n * s.channels;
      float* de = e ? grad_emb.mutable_data_ptr<float>() + n * 2 * s.channels : nullptr;
      for (int64_t c = 0; c < s.channels; ++c) {
        const double xhat = total1[c] * rstds[c / s.group_size()], scale = e ? 1.0 + e[c] : 1.0;
        dw[c] = float(scale * xhat);
        db[c] = float(scale * total0[c]);
        if (de) {
          de[c] = float(w[c] * xhat + beta[c] * total0[c]);
          de[s.channels + c] = float(total0[c]);
        }
      }
    }
  });
  return {grad_x, grad_weight.sum(0), grad_bias.sum(0), grad_emb};
}

}  // namespace

TORCH_LIBRARY(papertable, library) {
  library.def(
      "norm_act(Tensor x, Tensor weight, Tensor bias, Tensor? emb, int groups, float eps, bool silu)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "norm_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? emb, Tensor mean, Tensor rstd,"
      " int groups, bool silu) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(papertable, CPU, library) {
  library.impl("norm_act", &forward);
  library.impl("norm_act_backward", &backward);
}
