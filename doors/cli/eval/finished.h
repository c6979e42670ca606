// What earlier runs of the same evaluation finished, so that one that was stopped goes on where it was: a file of JSON
// lines, each written when a part was done. A line counts when its key is ours; the key is made of everything that moves a
// result.
#pragma once

#include <map>
#include <string>

#include "../output.h"

namespace cli {

class Finished {
 public:
  // `path`: empty for a file of the key's own in the cache. `fresh`: what is there does not count, and is overwritten. A
  // file that holds something else is refused either way.
  Finished(const std::string& path, const Json& key, bool fresh);

  // The result of that part, or nullptr.
  const Json* find(const std::string& part) const;
  void add(const std::string& part, const Json& result);

  std::size_t size() const { return results_.size(); }
  const std::string& path() const { return path_; }

 private:
  void read();

  std::string path_;
  std::string key_;
  std::map<std::string, Json> results_;
};

// What identifies a file without reading all of it: its path, size and time of change.
Json identity_of(const std::string& path);

// 16 hexadecimal digits (FNV-1a, 64 bits).
std::string hash_of(const std::string& text);

}  // namespace cli
