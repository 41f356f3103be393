#pragma once

// The control channel between the runtime and the init process inside a sandbox
// (docs/formats.md, "Sandbox control channel"). Plain structs and no library,
// because the init program is linked statically and uses nothing else.

#include <cstddef>
#include <cstdint>

namespace creto::runtime::control {

/// Every frame: this header in little endian, then `length` bytes.
struct FrameHeader {
  std::uint8_t magic;     ///< 0xC7
  std::uint8_t version;   ///< 2
  std::uint8_t type;      ///< FrameType
  std::uint8_t reserved;  ///< 0
  std::uint32_t stream;   ///< which command it is about, chosen by the runtime; 0 for none
  std::uint32_t length;   ///< of the payload
};
static_assert(sizeof(FrameHeader) == 12);

inline constexpr std::uint8_t frame_magic = 0xC7;
inline constexpr std::uint8_t frame_version = 2;
inline constexpr std::uint32_t frame_payload_max = 1u << 20;

/// Strings in payloads are a little-endian u32 length and the bytes; lists are
/// a u32 count and the items.
///
/// What a command writes is neither lost nor doubled when the runtime dies: init
/// keeps it until it is acknowledged and sends what was not over every new
/// connection again, after it the command's end. Offsets count the bytes of one
/// output of one command from its start.
enum class FrameType : std::uint8_t {
  // runtime to init
  claim = 1,        ///< list of environment strings "K=V", list of files (path,
                    ///< content): kept in memory for all commands
  start = 2,        ///< string cwd, list argv, list of additional environment strings
  input = 3,        ///< bytes for the command's stdin; an empty one closes it
  signal = 4,       ///< u32 number, to the command's process group
  ping = 5,         ///< any bytes, returned in a pong
  forget = 6,       ///< the end of this command is known for good: init need not
                    ///< report it again
  acknowledge = 7,  ///< u8 1 (stdout) or 2 (stderr), u64 offset: what was written before it is kept here
  // init to runtime
  hello = 16,    ///< first frame of a connection: string sandbox id, list of the
                 ///< commands that were not forgotten (u32 stream)
  started = 17,  ///< u32 process id inside the sandbox
  output = 18,   ///< u8 1 (stdout) or 2 (stderr), u64 offset of the first byte, then bytes
  ended = 19,    ///< u32 wait status; behind all output of the command
  failed = 20,   ///< u32 errno, string what could not be done: the command was
                 ///< not started
  pong = 21,
  claimed = 22,  ///< u32 errno, string; 0 where the claim took hold
};

}  // namespace creto::runtime::control
