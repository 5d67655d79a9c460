# cmake -DIN=file -DOUT=file.c -DVAR=name -P embed.cmake
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
file(WRITE ${OUT} "extern const char ${VAR}[];\nconst char ${VAR}[] = {${bytes}0};\n")
