// Text in the op table and in messages.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace clada::trt {

// The parts of a text that commas separate; none where it is empty.
inline std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  return parts;
}

inline std::string join(const std::vector<std::string_view>& parts) {
  std::string text;
  for (const std::string_view part : parts) text += (text.empty() ? "" : ", ") + std::string(part);
  return text;
}

}  // namespace clada::trt
