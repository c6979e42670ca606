# Builds llama.cpp in less than two thirds of the time, from unmodified sources; read in where its project() call ends.
#
# Its files spend most of their time on the same headers (a JSON library, <regex>), so several become one translation
# unit. What runs while a token is generated (ggml, libllama, the sampler) keeps the release build's -O3; argument
# parsing, chat templates, HTTP and image input are compiled with -O1.

function(build_faster)
    set_target_properties(llama-common mtmd server-context llama-server-impl
        PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    set_property(TARGET llama-common mtmd server-context llama-server-impl cpp-httplib
        APPEND PROPERTY COMPILE_OPTIONS -O1)

    # libllama joins its models/ by itself; its other files may be joined as well.
    file(GLOB core ${CMAKE_SOURCE_DIR}/src/*.cpp)
    set_source_files_properties(${core} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)

    # These four clash with their neighbours.
    set_source_files_properties(${CMAKE_SOURCE_DIR}/common/json.cpp ${CMAKE_SOURCE_DIR}/common/jinja/value.cpp
        TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    set_source_files_properties(${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper.cpp ${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper-gen.cpp
        TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

    set_source_files_properties(${CMAKE_SOURCE_DIR}/common/sampling.cpp
        TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON COMPILE_OPTIONS -O3)
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL build_faster)
