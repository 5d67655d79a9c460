# Compiler flags, and the three ways to declare a target. The include law (who may include whom)
# is enforced twice: a library sees only the folders of its DEPS, and tests/unit/test_include_law.py.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_EXTENSIONS ON) # GNU: cleanup attribute, accept4 and friends
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

add_compile_definitions(_GNU_SOURCE VIW_VERSION="${PROJECT_VERSION}")
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wformat=2
                    -Wvla -Wmissing-prototypes -Werror -fno-common -fstack-protector-strong
                    -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
add_link_options(-pie -Wl,-z,relro,-z,now,-z,noexecstack -Wl,--as-needed)
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  set(CMAKE_C_FLAGS_RELEASE "") # not -DNDEBUG: an assert is for a bug, and a bug must stop the process
  add_compile_options(-O2 -g1 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
  include(CheckIPOSupported)
  check_ipo_supported(RESULT viw_ipo OUTPUT viw_ipo_why LANGUAGES C)
  set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ${viw_ipo})
elseif(CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
  set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g") # for the same reason
endif()
if(VIW_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
if(VIW_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
endif()
if(VIW_CRASH_POINTS)
  add_compile_definitions(VIW_CRASH_POINTS)
endif()
if(VIW_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(openssl REQUIRED IMPORTED_TARGET libcrypto)
pkg_check_modules(ssl REQUIRED IMPORTED_TARGET libssl)
pkg_check_modules(jansson REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(uv REQUIRED IMPORTED_TARGET libuv)
pkg_check_modules(lws REQUIRED IMPORTED_TARGET libwebsockets)
pkg_check_modules(hiredis REQUIRED IMPORTED_TARGET hiredis)
pkg_check_modules(pq REQUIRED IMPORTED_TARGET libpq)
pkg_check_modules(systemd REQUIRED IMPORTED_TARGET libsystemd)
pkg_check_modules(seccomp REQUIRED IMPORTED_TARGET libseccomp)
pkg_check_modules(curl REQUIRED IMPORTED_TARGET libcurl)

# viw_lib(name DEPS base … LINKS PkgConfig::x …): a static library of lib/<name>/*.c.
# DEPS and LINKS are private; a library's own headers are reached as "<name>/x.h".
function(viw_lib name)
  cmake_parse_arguments(A "" "" "DEPS;LINKS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.c)
  if(NOT sources)
    return()
  endif()
  add_library(viw_${name} STATIC ${sources})
  target_include_directories(viw_${name} PUBLIC ${CMAKE_SOURCE_DIR}/lib)
  foreach(dep ${A_DEPS})
    target_link_libraries(viw_${name} PUBLIC viw_${dep})
  endforeach()
  target_link_libraries(viw_${name} PRIVATE ${A_LINKS})
endfunction()

# viw_program(name DEPS … LINKS …): every *.c of this folder but main.c becomes viw_<name>_objs
# (what unit tests link), and with main.c the program <name>.
function(viw_program name)
  cmake_parse_arguments(A "" "" "DEPS;LINKS;SOURCES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
  list(FILTER sources EXCLUDE REGEX "/main\\.c$")
  list(APPEND sources ${A_SOURCES})
  add_library(viw_${name}_objs STATIC ${sources})
  target_include_directories(viw_${name}_objs PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  foreach(dep ${A_DEPS})
    target_link_libraries(viw_${name}_objs PUBLIC viw_${dep})
  endforeach()
  target_link_libraries(viw_${name}_objs PUBLIC ${A_LINKS})
  add_executable(${name} ${CMAKE_CURRENT_SOURCE_DIR}/main.c)
  target_link_libraries(${name} PRIVATE viw_${name}_objs)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# viw_unit_test(module DEPS base …): tests/unit/test_<module>.c with cmocka.
function(viw_unit_test module)
  cmake_parse_arguments(A "" "" "DEPS;LINKS;SOURCES" ${ARGN})
  add_executable(test_${module} ${CMAKE_SOURCE_DIR}/tests/unit/test_${module}.c ${A_SOURCES})
  foreach(dep ${A_DEPS})
    target_link_libraries(test_${module} PRIVATE viw_${dep})
  endforeach()
  target_link_libraries(test_${module} PRIVATE PkgConfig::cmocka ${A_LINKS})
  set_target_properties(test_${module} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME unit.${module} COMMAND test_${module})
endfunction()

# viw_embed(target var file): file's text as `const char var[]` in a generated C file of target.
function(viw_embed out_sources var file)
  set(out ${CMAKE_CURRENT_BINARY_DIR}/embed_${var}.c)
  get_filename_component(dir ${file} DIRECTORY)
  file(GLOB included CONFIGURE_DEPENDS ${dir}/lib/*)
  add_custom_command(OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DIN=${file} -DOUT=${out} -DVAR=${var} -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS ${file} ${included} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
  set(${out_sources} ${${out_sources}} ${out} PARENT_SCOPE)
endfunction()

# viw_fuzz(name DEPS …): tests/fuzz/fuzz_<name>.c with libFuzzer; corpus in tests/fuzz/corpus/<name>/.
function(viw_fuzz name)
  cmake_parse_arguments(A "" "" "DEPS;LINKS;SOURCES" ${ARGN})
  add_executable(fuzz_${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_${name}.c ${A_SOURCES})
  foreach(dep ${A_DEPS})
    target_link_libraries(fuzz_${name} PRIVATE viw_${dep})
  endforeach()
  target_link_libraries(fuzz_${name} PRIVATE ${A_LINKS})
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(fuzz_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
