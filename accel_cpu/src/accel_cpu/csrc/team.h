// Threads that stay with one that calls op after op, as a replayed graph does: the ops deal their
// work to them without waking them, and between ops they read what comes next into the caches.
#pragma once

#include <cstdint>

namespace accel_cpu {

struct Lying {
  const void* data;
  int64_t bytes;
};

class Team {
 public:
  // What is read by an op after the one that is called next, each from its beginning. It stays
  // where it is until the team has parted.
  virtual void read_next(const Lying* first, int64_t count) = 0;

 protected:
  ~Team() = default;
};

using TeamWork = void (*)(Team&, void* context);

// Calls work(team, context) on this thread, with OpenMP's others for a team. What this thread calls
// of OpenMP itself meanwhile has no threads but this.
void in_team(TeamWork work, void* context);

}  // namespace accel_cpu
