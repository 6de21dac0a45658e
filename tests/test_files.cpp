// Small file helpers: atomic writes, folders, globs, checksums, messages.
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "checkpoint/files.h"
#include "temp_folder.h"
#include "test.h"

TEST_CASE("files: text written atomically reads back, and nothing else is left", "[files]") {
    TempFolder folder;
    std::string path = folder / "a.json", text("one\0two\r\n", 9);
    text.append(100000, 'x');
    write_text_atomic(path, text);
    REQUIRE(read_text(path) == text);
    write_text_atomic(path, "");
    REQUIRE(read_text(path).empty());
    REQUIRE(list_folder(folder.path) == std::vector<std::string>{"a.json"});
}

TEST_CASE("files: a writer that is not committed leaves the old file as it was", "[files]") {
    TempFolder folder;
    std::string path = folder / "a";
    write_text_atomic(path, "old");
    {
        FileWriter file(path);
        file.write("new and long", 12);
        REQUIRE(read_text(path) == "old");
    }
    REQUIRE(read_text(path) == "old");
    REQUIRE(list_folder(folder.path).size() == 1);
    FileWriter file(path);
    file.write("0123456789", 10);
    file.close();
    file.write_at(2, "ab", 2);
    file.truncate(5);
    char back[3] = {};
    file.read_at(2, back, 3);
    REQUIRE(std::string(back, 3) == "ab4");
    file.write("!", 1);
    file.commit();
    REQUIRE(read_text(path) == "01ab4!");
}

TEST_CASE("files: folders and what is in them", "[files]") {
    TempFolder folder;
    std::string deep = folder / "x/y/z";
    REQUIRE_FALSE(folder_exists(deep));
    make_folders(deep);
    make_folders(deep);
    make_folders(deep + "/");
    REQUIRE(folder_exists(deep));
    REQUIRE_FALSE(file_exists(deep));
    put_bytes(deep + "/b", "");
    put_bytes(deep + "/a", "");
    put_bytes(deep + "/.hidden", "");
    REQUIRE(file_exists(deep + "/a"));
    REQUIRE_FALSE(folder_exists(deep + "/a"));
    REQUIRE(list_folder(deep) == std::vector<std::string>{".hidden", "a", "b"});
    remove_folder(folder / "x");
    remove_folder(folder / "x");
    REQUIRE_FALSE(folder_exists(folder / "x"));
    REQUIRE(parent_folder("a") == ".");
    REQUIRE(parent_folder("/a") == "/");
    REQUIRE(parent_folder("x/y/a") == "x/y");
    REQUIRE(base_name("x/y/a") == "a");
}

TEST_CASE("files: a glob is sorted by bytes, each file once", "[files]") {
    TempFolder folder;
    for (const char* name : {"b_10.bin", "b_9.bin", "B_1.bin", "a_1.bin", "a_1.txt"}) put_bytes(folder / name, "");
    std::vector<std::string> want = {folder / "B_1.bin", folder / "a_1.bin", folder / "b_10.bin", folder / "b_9.bin"};
    REQUIRE(glob_files(folder / "*.bin") == want);
    REQUIRE(glob_files(folder / "{a_1,a_?}.bin") == std::vector<std::string>{folder / "a_1.bin"});
    REQUIRE(glob_files(folder / "a_1.txt").size() == 1);
    REQUIRE(glob_files(folder / "none*").empty());
    REQUIRE(glob_files(folder / "none/*.bin").empty());
}

TEST_CASE("files: a checksum sees every changed byte and length", "[files]") {
    TempFolder folder;
    std::string path = folder / "data";
    Random random(7);
    std::string bytes(1003, '\0');
    for (char& c : bytes) c = static_cast<char>(random.below(256));
    auto sum = [&](const std::string& content) {
        put_bytes(path, content);
        return file_checksum(path);
    };
    std::string original = sum(bytes);
    REQUIRE(original.size() == 16);
    REQUIRE(original.find_first_not_of("0123456789abcdef") == std::string::npos);
    REQUIRE(sum(bytes) == original);
    std::set<std::string> seen = {original};
    for (size_t i = 0; i < bytes.size(); i += 7) {
        std::string changed = bytes;
        changed[i] = static_cast<char>(changed[i] ^ (1 << random.below(8)));
        REQUIRE(seen.insert(sum(changed)).second);
    }
    for (size_t length = 0; length <= 100; length++) REQUIRE(seen.insert(sum(std::string(length, '\0'))).second);
    for (size_t length = 900; length < 1003; length++) REQUIRE(seen.insert(sum(bytes.substr(0, length))).second);
    std::string swapped = bytes;  // two blocks of 32 bytes change places
    std::swap_ranges(swapped.begin() + 64, swapped.begin() + 96, swapped.begin() + 320);
    REQUIRE(seen.insert(sum(swapped)).second);
    // Larger than one block of the reader, and a multiple of it.
    std::string large(3 << 20, 'x');
    REQUIRE(seen.insert(sum(large)).second);
    large[(2 << 20) + 5] = 'y';
    REQUIRE(seen.insert(sum(large)).second);
}

TEST_CASE("files: errors name the path, the reason, and what to do", "[files]") {
    TempFolder folder;
    std::string missing = folder / "no/such", plain = folder / "plain";
    put_bytes(plain, "x");
    for (const std::string& message :
         {user_error_of([&] { read_text(missing); }), user_error_of([&] { file_checksum(missing); }),
          user_error_of([&] { write_text_atomic(missing, "x"); }), user_error_of([&] { list_folder(missing); }),
          user_error_of([&] { map_file(missing); })}) {
        INFO(message);
        REQUIRE(message.find(missing) != std::string::npos);
        REQUIRE(message.find("; check the path") != std::string::npos);
    }
    REQUIRE(user_error_of([&] { read_text(folder.path); }).find("is a folder") != std::string::npos);
    REQUIRE(user_error_of([&] { map_file(folder.path); }).find("is a folder") != std::string::npos);
    REQUIRE(user_error_of([&] { make_folders(plain + "/sub"); }).find(plain) != std::string::npos);
    REQUIRE(user_error_of([&] { make_folders(plain); }).find(plain) != std::string::npos);
    if (geteuid() != 0) {
        chmod(folder.path.c_str(), 0500);
        REQUIRE(user_error_of([&] { write_text_atomic(folder / "a", "x"); }).find("permissions") != std::string::npos);
        chmod(folder.path.c_str(), 0700);
    }
    REQUIRE(map_file(plain).size == 1);
    put_bytes(plain, "");
    REQUIRE(map_file(plain).data == nullptr);
}

TEST_CASE("files: foreign text is shown on one line", "[files]") {
    REQUIRE(printable("h.0.attn") == "h.0.attn");
    REQUIRE(printable("a\nb\x01\xff") == "a\\x0ab\\x01\\xff");
    REQUIRE(printable(std::string(500, 'x')).size() == 123);
}
