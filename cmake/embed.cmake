# cmake -DIN=file -DOUT=file.c -DVAR=name -P embed.cmake
# A line `-- @include name` stands for that file, found beside IN.
file(READ ${IN} hex HEX)
file(STRINGS ${IN} includes REGEX "^-- @include ")
get_filename_component(dir ${IN} DIRECTORY)
foreach(line ${includes})
  string(REGEX REPLACE "^-- @include " "" name "${line}")
  string(HEX "${line}\n" marker)
  file(READ ${dir}/${name} text HEX)
  string(REPLACE "${marker}" "${text}" hex "${hex}")
endforeach()
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
file(WRITE ${OUT} "extern const char ${VAR}[];\nconst char ${VAR}[] = {${bytes}0};\n")
