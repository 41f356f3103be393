# Finds what ./dev deps put in place and offers each library as creto::<name>:
#
#   openssl_crypto openssl_ssl (3.5 or newer, also as OpenSSL::Crypto and OpenSSL::SSL)  blake3  mpdecimal
#   grpc (gRPC::grpc++)  grpc_reflection  protobuf  sqlite  libpq  boost (headers)  curl  hpdf  png  freetype
#   json (nlohmann)  simdjson  toml (toml++)  yaml (yaml-cpp)  cli11  fmt  spdlog  prometheus  threads
#   gtest  gmock  benchmark  benchmark_main
#
# and the programs protobuf::protoc and gRPC::grpc_cpp_plugin. The usual names (fmt::fmt, gRPC::grpc++...) are there too.
#
# Include it from the root, before any target: it also sets directory-wide link options, so that every executable maps one
# libcrypto and one libssl, and they are the 3.5 ones.

include_guard(GLOBAL)

set(_missing_hint "run ./dev deps")

# --- the cache of what Debian lacks ------------------------------------------------------------------------------------

if(DEFINED ENV{CRETO_DEPS})
  set(_default "$ENV{CRETO_DEPS}")
elseif(DEFINED ENV{XDG_CACHE_HOME})
  set(_default "$ENV{XDG_CACHE_HOME}/creto/deps")
else()
  set(_default "$ENV{HOME}/.cache/creto/deps")
endif()
set(CRETO_DEPS "${_default}" CACHE PATH "Where ./dev deps put what it built")

# The newest <name>-<version> in the cache.
function(_creto_cached name out)
  file(GLOB found LIST_DIRECTORIES true "${CRETO_DEPS}/${name}-[0-9]*")
  list(SORT found COMPARE NATURAL ORDER DESCENDING)
  if(found)
    list(GET found 0 newest)
    set(${out} "${newest}" PARENT_SCOPE)
  else()
    set(${out} "" PARENT_SCOPE)
  endif()
endfunction()

function(_creto_imported target kind library include)
  add_library(${target} ${kind} IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${library}")
  if(include)
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${include}")
  endif()
endfunction()

foreach(_static "blake3:libblake3.a" "mpdecimal:libmpdec.a")
  string(REPLACE ":" ";" _static "${_static}")
  list(GET _static 0 _name)
  list(GET _static 1 _file)
  _creto_cached(${_name} _root)
  if(NOT _root)
    message(FATAL_ERROR "${_name} is not in ${CRETO_DEPS}: ${_missing_hint}")
  endif()
  _creto_imported(creto::${_name} STATIC "${_root}/lib/${_file}" "${_root}/include")
endforeach()
set_property(TARGET creto::mpdecimal APPEND PROPERTY INTERFACE_LINK_LIBRARIES m)

find_package(Threads REQUIRED)

_creto_cached(openssl _root)
if(_root)
  _creto_imported(creto::openssl_crypto SHARED "${_root}/lib/libcrypto.so.3" "${_root}/include")
  _creto_imported(creto::openssl_ssl SHARED "${_root}/lib/libssl.so.3" "${_root}/include")
  set_target_properties(creto::openssl_crypto PROPERTIES IMPORTED_SONAME libcrypto.so.3)
  set_target_properties(creto::openssl_ssl PROPERTIES IMPORTED_SONAME libssl.so.3)
  set_property(TARGET creto::openssl_ssl APPEND PROPERTY INTERFACE_LINK_LIBRARIES creto::openssl_crypto)
  # gRPC, libcurl and libpq as packaged ask for libssl.so.3 too. A RUNPATH does not reach the dependencies of dependencies, an
  # RPATH does; so all of them get ours, whether or not the executable names it. Mixing two would break ML-DSA certificates.
  add_link_options("LINKER:--disable-new-dtags")
  set(CMAKE_BUILD_RPATH "${_root}/lib")
  # Also for targets that see OpenSSL only through somebody else's header.
  include_directories(BEFORE SYSTEM "${_root}/include")
  set(CRETO_OPENSSL_ROOT "${_root}")
else()
  find_library(CRETO_SYSTEM_CRYPTO crypto)
  find_library(CRETO_SYSTEM_SSL ssl)
  find_path(CRETO_SYSTEM_SSL_INCLUDE openssl/ml_kem.h)
  if(NOT CRETO_SYSTEM_CRYPTO OR NOT CRETO_SYSTEM_SSL OR NOT CRETO_SYSTEM_SSL_INCLUDE)
    message(FATAL_ERROR "OpenSSL 3.5 is neither in ${CRETO_DEPS} nor installed: ${_missing_hint}")
  endif()
  _creto_imported(creto::openssl_crypto SHARED "${CRETO_SYSTEM_CRYPTO}" "")
  _creto_imported(creto::openssl_ssl SHARED "${CRETO_SYSTEM_SSL}" "")
  set_property(TARGET creto::openssl_ssl APPEND PROPERTY INTERFACE_LINK_LIBRARIES creto::openssl_crypto)
  set(CRETO_OPENSSL_ROOT "/usr")
endif()
set_property(TARGET creto::openssl_crypto APPEND PROPERTY INTERFACE_LINK_LIBRARIES Threads::Threads ${CMAKE_DL_LIBS})
# The usual names, so that a package that calls find_package(OpenSSL) gets the same one.
foreach(_pair "Crypto:crypto" "SSL:ssl")
  string(REPLACE ":" ";" _pair "${_pair}")
  list(GET _pair 0 _usual)
  list(GET _pair 1 _ours)
  add_library(OpenSSL::${_usual} INTERFACE IMPORTED GLOBAL)
  target_link_libraries(OpenSSL::${_usual} INTERFACE creto::openssl_${_ours})
endforeach()

# --- Debian's packages ------------------------------------------------------------------------------------------------

# gRPC and protobuf by hand: gRPC's own CMake package finds a dozen others, the system's OpenSSL among them.
function(_creto_library target name header)
  find_library(CRETO_LIB_${name} NAMES ${name})
  find_path(CRETO_INCLUDE_${name} ${header})
  mark_as_advanced(CRETO_LIB_${name} CRETO_INCLUDE_${name})
  if(NOT CRETO_LIB_${name} OR NOT CRETO_INCLUDE_${name})
    message(FATAL_ERROR "lib${name} or its header ${header} is missing: ${_missing_hint}")
  endif()
  _creto_imported(${target} SHARED "${CRETO_LIB_${name}}" "${CRETO_INCLUDE_${name}}")
  if(ARGN)
    set_property(TARGET ${target} APPEND PROPERTY INTERFACE_LINK_LIBRARIES ${ARGN})
  endif()
endfunction()

function(_creto_program target name)
  find_program(CRETO_PROGRAM_${name} ${name})
  mark_as_advanced(CRETO_PROGRAM_${name})
  if(NOT CRETO_PROGRAM_${name})
    message(FATAL_ERROR "the program ${name} is missing: ${_missing_hint}")
  endif()
  add_executable(${target} IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${CRETO_PROGRAM_${name}}")
endfunction()

_creto_library(protobuf::libprotobuf protobuf google/protobuf/message.h Threads::Threads)
_creto_library(gRPC::gpr gpr grpc/grpc.h Threads::Threads)
_creto_library(gRPC::grpc grpc grpc/grpc.h gRPC::gpr creto::openssl_ssl)
# gRPC's headers call absl::Mutex inline.
_creto_library(gRPC::absl absl_synchronization absl/synchronization/mutex.h)
_creto_library(gRPC::grpc++ grpc++ grpcpp/grpcpp.h gRPC::grpc gRPC::absl protobuf::libprotobuf)
_creto_library(gRPC::grpc++_reflection grpc++_reflection grpcpp/ext/proto_server_reflection_plugin.h gRPC::grpc++)
_creto_library(creto::hpdf hpdf hpdf.h)
_creto_library(creto::png png png.h)
_creto_library(creto::freetype freetype freetype2/freetype/freetype.h)
set_property(TARGET creto::freetype PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${CRETO_INCLUDE_freetype}/freetype2")
_creto_program(protobuf::protoc protoc)
_creto_program(gRPC::grpc_cpp_plugin grpc_cpp_plugin)

foreach(_package fmt spdlog nlohmann_json simdjson tomlplusplus yaml-cpp CLI11 prometheus-cpp benchmark GTest)
  find_package(${_package} CONFIG QUIET)
  if(NOT ${_package}_FOUND)
    message(FATAL_ERROR "the library ${_package} is missing: ${_missing_hint}")
  endif()
endforeach()
find_package(Boost 1.81 CONFIG QUIET)
find_package(CURL QUIET)
find_package(SQLite3 QUIET)
find_package(PostgreSQL QUIET)
foreach(_package Boost CURL SQLite3 PostgreSQL)
  if(NOT ${_package}_FOUND)
    message(FATAL_ERROR "the library ${_package} is missing: ${_missing_hint}")
  endif()
endforeach()

set(_yaml yaml-cpp)
if(TARGET yaml-cpp::yaml-cpp) # since 0.8
  set(_yaml yaml-cpp::yaml-cpp)
endif()

# --- one naming scheme ------------------------------------------------------------------------------------------------

foreach(_pair
    grpc=gRPC::grpc++ grpc_reflection=gRPC::grpc++_reflection protobuf=protobuf::libprotobuf
    sqlite=SQLite::SQLite3 libpq=PostgreSQL::PostgreSQL boost=Boost::headers curl=CURL::libcurl
    json=nlohmann_json::nlohmann_json simdjson=simdjson::simdjson toml=tomlplusplus::tomlplusplus yaml=${_yaml}
    cli11=CLI11::CLI11 fmt=fmt::fmt spdlog=spdlog::spdlog prometheus=prometheus-cpp::core threads=Threads::Threads
    gtest=GTest::gtest gmock=GTest::gmock benchmark=benchmark::benchmark benchmark_main=benchmark::benchmark_main)
  string(REPLACE "=" ";" _pair "${_pair}")
  list(GET _pair 0 _ours)
  list(GET _pair 1 _usual)
  if(TARGET ${_usual})
    add_library(creto::${_ours} ALIAS ${_usual})
  else()
    message(FATAL_ERROR "the CMake package of ${_ours} does not define ${_usual}: ${_missing_hint}")
  endif()
endforeach()

# --- sanitizers -------------------------------------------------------------------------------------------------------

if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
  add_library(creto_sanitizer_defaults OBJECT "${CMAKE_CURRENT_LIST_DIR}/sanitizer_defaults.cc")
  link_libraries($<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:creto_sanitizer_defaults>)
endif()
