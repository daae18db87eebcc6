#include "device_profile.h"

namespace cudaemu {

// Published figures of the boards (H100 SXM5, A100 SXM4 80 GB, GeForce RTX 4090, T4, B200, RTX 5090, Jetson Orin NX 16 GB:
// few SMs, so that small inputs already take the paths meant for much work).
static constexpr DeviceProfile kProfiles[] = {
    {"h100", "Emulated NVIDIA H100 SXM5", 9, 0, 132, 2048, 32, 228 << 10, 227 << 10, 50 << 20, 80ll << 30, 5120,
     3350, 1.83, 66.9, 33.5, 133.8, 989, 494, 1979, 4, 128, 16},
    {"a100", "Emulated NVIDIA A100 SXM4 80GB", 8, 0, 108, 2048, 32, 164 << 10, 163 << 10, 40 << 20, 80ll << 30, 5120,
     2039, 1.41, 19.5, 9.7, 78, 312, 156, 624, 4, 128, 16},
    {"rtx4090", "Emulated NVIDIA GeForce RTX 4090", 8, 9, 128, 1536, 24, 100 << 10, 99 << 10, 72 << 20, 24ll << 30, 384,
     1008, 2.52, 82.6, 1.29, 82.6, 165, 82.6, 330, 4, 128, 16},
    {"t4", "Emulated Tesla T4", 7, 5, 40, 1024, 16, 64 << 10, 64 << 10, 4 << 20, 16ll << 30, 256,
     320, 1.59, 8.1, 0.25, 16.2, 65, 0, 130, 4, 64, 16},
    {"b200", "Emulated NVIDIA B200", 10, 0, 148, 2048, 32, 228 << 10, 227 << 10, 126 << 20, 180ll << 30, 8192,
     8000, 1.85, 75, 37, 150, 2250, 1125, 4500, 4, 128, 16},
    {"rtx5090", "Emulated NVIDIA GeForce RTX 5090", 12, 0, 170, 1536, 24, 100 << 10, 99 << 10, 96 << 20, 32ll << 30, 512,
     1792, 2.41, 104.8, 1.64, 104.8, 209, 104.8, 419, 4, 128, 16},
    {"orin", "Emulated NVIDIA Jetson Orin NX", 8, 7, 8, 1536, 16, 164 << 10, 163 << 10, 4 << 20, 16ll << 30, 128,
     102, 0.92, 1.88, 0.03, 3.8, 15, 7.5, 30, 4, 128, 16},
};

const DeviceProfile* find_profile(const std::string& key) {
  for (const DeviceProfile& p : kProfiles)
    if (key == p.key) return &p;
  return nullptr;
}

std::string profile_names() {
  std::string s;
  for (const DeviceProfile& p : kProfiles) s += (s.empty() ? "" : ", ") + std::string(p.key);
  return s;
}

}  // namespace cudaemu
