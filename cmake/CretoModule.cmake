# One library target per module, and the one place that says which layer may depend on which.
#
#   creto_module(audit LAYER platform
#     PUBLIC creto::common            # what the module's public headers need
#     PRIVATE creto::io               # what only its sources need
#     SOURCES audit_log.cc ...)
#
# makes the target creto_audit with the alias creto::audit. Public headers live in include/creto/<module>/.
# Configuration stops on an upward edge, a product-to-product edge, and a cycle.
#
#   creto_test(audit_test SOURCES tests/audit_test.cc DEPS creto::audit [DEFINITIONS NAME="text"] [LABELS concurrent])
#   creto_script_test(docs PROGRAM docs_test.py ARGUMENTS … LABELS … TIMEOUT 300)  -> with `--creto <the built binary>`
#   creto_soak(crash PROGRAM crash_test.py ARGUMENTS …)                   -> bin/soak_crash, for ./dev soak
#   creto_soak(peer TEST peer_test FILTER Peer.* ENVIRONMENT ROUNDS=9)    -> likewise; what the environment has already stays
#   creto_bench(audit SOURCES bench/audit_bench.cc DEPS creto::audit)     -> bin/bench_audit
#   creto_fuzz(audit_tile SOURCES tests/tile_fuzz.cc DEPS creto::audit)   -> bin/fuzz_audit_tile, where CRETO_FUZZ is on;
#                                                                            the target `fuzzers` is all of them

set(CRETO_LAYERS common crypto io platform security contracts products app)

# platform modules and security modules may use earlier ones of their own layer, in this order.
set(CRETO_ORDER common crypto proto io consensus audit nhi vault inference authz memory storage contracts
    metering oversight runtime messaging app)

add_library(creto_warnings INTERFACE)
target_compile_options(creto_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion -Wnon-virtual-dtor -Woverloaded-virtual
  # Another compiler's new warning must not keep a user from building; who develops sees to every one.
  $<$<NOT:$<CONFIG:Release>>:-Werror>
  # GCC 12 reports these inside std::vector and std::optional code that is correct.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread -Wno-restrict -Wno-dangling-pointer -Wno-use-after-free -Wno-nonnull>
  # CRETO_ASSERT(!"why this cannot be"); and what libstdc++ 12 itself uses in std::stable_sort.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-string-conversion -Wno-deprecated-declarations>>)

# The headers that nearly everything includes, precompiled: once for modules and programs, once more with GoogleTest for tests,
# and in a release once more for commands, which are compiled with -O1: GCC takes none that was made with other options.
option(CRETO_PCH "Precompile the standard, JSON and GoogleTest headers" ON)
option(CRETO_TESTS "Build the tests" ON)

# Not with CMake's REUSE_FROM: it names absolute paths, which no compiler cache carries from one clone to the next.
function(creto_pch target which)
  if(NOT CRETO_PCH)
    return()
  endif()
  set(header CMakeFiles/creto_${which}.dir/cmake_pch.hxx)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    set(precompiled ${header}.pch)
    set(options -include-pch ${precompiled})
  else()
    set(precompiled ${header}.gch)
    set(options -include ${header})
  endif()
  target_compile_options(${target} PRIVATE -Winvalid-pch "SHELL:${options}")
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "\\.cc$")
  set_property(SOURCE ${sources} APPEND PROPERTY OBJECT_DEPENDS ${CMAKE_BINARY_DIR}/${precompiled})
endfunction()

if(CRETO_PCH)
  foreach(which IN ITEMS pch pch_test pch_commands)
    string(REPLACE "_commands" "" header ${which})
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/${which}.cc CONTENT "")
    add_library(creto_${which} OBJECT EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/${which}.cc)
    target_precompile_headers(creto_${which} PRIVATE ${CMAKE_SOURCE_DIR}/cmake/${header}.h)
    target_link_libraries(creto_${which} PRIVATE creto::json creto::fmt creto_warnings)
    set_target_properties(creto_${which} PROPERTIES CXX_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/tools/pch.sh)
  endforeach()
  target_link_libraries(creto_pch_test PRIVATE creto::gtest creto::gmock)
  target_compile_options(creto_pch_commands PRIVATE -O1)
endif()

function(creto_module name)
  cmake_parse_arguments(arg "" "LAYER" "PUBLIC;PRIVATE;SOURCES" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "creto_module(${name}): unknown arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  list(FIND CRETO_LAYERS "${arg_LAYER}" layer_rank)
  list(FIND CRETO_ORDER "${name}" order)
  if(layer_rank LESS 0 OR order LESS 0)
    message(FATAL_ERROR "creto_module(${name}): layer '${arg_LAYER}' or module '${name}' is not in the house")
  endif()
  set_property(GLOBAL PROPERTY creto_layer_of_${name} ${arg_LAYER})

  foreach(dep IN LISTS arg_PUBLIC arg_PRIVATE)
    if(NOT dep MATCHES "^creto::([a-z0-9_]+)$")
      continue()
    endif()
    set(dep_name ${CMAKE_MATCH_1})
    get_property(dep_layer GLOBAL PROPERTY creto_layer_of_${dep_name})
    if(NOT dep_layer)
      list(FIND CRETO_ORDER "${dep_name}" known)
      if(known GREATER_EQUAL 0)
        message(FATAL_ERROR "creto_module(${name}): depends on ${dep_name}, which comes later in the house")
      endif()
      continue()  # a third-party target from CretoDeps
    endif()
    list(FIND CRETO_LAYERS "${dep_layer}" dep_rank)
    list(FIND CRETO_ORDER "${dep_name}" dep_order)
    if(dep_rank GREATER layer_rank OR dep_order GREATER_EQUAL order)
      message(FATAL_ERROR "creto_module(${name}): ${arg_LAYER}/${name} must not depend on ${dep_layer}/${dep_name}")
    endif()
    if(arg_LAYER STREQUAL "products" AND dep_layer STREQUAL "products")
      message(FATAL_ERROR "creto_module(${name}): a product must not depend on another product (${dep_name})")
    endif()
  endforeach()

  if(CRETO_FUZZ)
    # What serves, stores and calls is most of what there is to compile, and no fuzz target runs it.
    list(FILTER arg_SOURCES EXCLUDE REGEX "(^[a-z_]*(service|store)|rpc/[a-z_]*(handlers|client))\\.cc$")
  endif()
  if(arg_SOURCES)
    add_library(creto_${name} STATIC ${arg_SOURCES})
    target_include_directories(creto_${name} PUBLIC include PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(creto_${name} PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE} creto_warnings)
    creto_pch(creto_${name} pch)
  else()
    add_library(creto_${name} INTERFACE)
    target_include_directories(creto_${name} INTERFACE include)
    target_link_libraries(creto_${name} INTERFACE ${arg_PUBLIC})
  endif()
  add_library(creto::${name} ALIAS creto_${name})
endfunction()

function(creto_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;DEFINITIONS;LABELS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  if(NOT CRETO_TESTS)
    return()
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE ${arg_DEFINITIONS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} creto::gtest creto::gmock creto_warnings)
  target_link_libraries(${name} PRIVATE creto_gtest_main)
  creto_pch(${name} pch_test)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT})
endfunction()

# A Python program that tests the binary `creto`; where it leaves with 77 it was skipped, and its last line says why.
function(creto_script_test name)
  cmake_parse_arguments(arg "" "PROGRAM;TIMEOUT" "ARGUMENTS;LABELS" ${ARGN})
  if(NOT CRETO_TESTS)
    return()
  endif()
  add_test(NAME ${name}_test COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/${arg_PROGRAM} ${arg_ARGUMENTS} --creto $<TARGET_FILE:creto>)
  set_tests_properties(${name}_test PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77)
endfunction()

function(creto_soak name)
  cmake_parse_arguments(arg "" "PROGRAM;TEST;FILTER" "ARGUMENTS;ENVIRONMENT" ${ARGN})
  if(arg_TEST)
    if(NOT CRETO_TESTS)
      return()
    endif()
    set(script "")
    foreach(setting IN LISTS arg_ENVIRONMENT)
      string(REPLACE "=" ";" setting "${setting}")
      list(POP_FRONT setting variable value)
      string(APPEND script "export ${variable}=\"\${${variable}:-${value}}\"\n")
    endforeach()
    string(APPEND script "exec '$<TARGET_FILE:${arg_TEST}>' '--gtest_filter=${arg_FILTER}' \"\$@\"")
  else()
    list(JOIN arg_ARGUMENTS " " arguments)
    set(script "exec python3 ${CMAKE_CURRENT_SOURCE_DIR}/${arg_PROGRAM} ${arguments} \"\$@\"")
  endif()
  file(GENERATE OUTPUT ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/soak_${name} CONTENT "#!/bin/sh\n${script}\n"
    FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
endfunction()

function(creto_bench name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(bench_${name} ${arg_SOURCES})
  target_include_directories(bench_${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_SOURCE_DIR})
  target_link_libraries(bench_${name} PRIVATE ${arg_DEPS} creto_warnings)
  creto_pch(bench_${name} pch)
endfunction()

if(CRETO_FUZZ)
  add_custom_target(fuzzers)
endif()

function(creto_fuzz name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(NOT CRETO_FUZZ)
    return()
  endif()
  add_executable(fuzz_${name} ${arg_SOURCES})
  target_include_directories(fuzz_${name} PRIVATE
    ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/testing/include)
  target_link_libraries(fuzz_${name} PRIVATE ${arg_DEPS} creto_warnings)
  creto_pch(fuzz_${name} pch)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  add_dependencies(fuzzers fuzz_${name})
endfunction()
