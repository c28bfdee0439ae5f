"""Names and texts of Android projects: valid whatever they are made of."""

import keyword
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tfcompress.export.android.contents import fill
from tfcompress.export.android.naming import (
    KEYWORDS,
    android_text,
    check_package,
    class_base,
    file_base,
    identifiers,
    kotlin_text,
)

HOSTILE = [
    'a"b',
    "a\\b",
    "${System.exit(1)}",
    "$x",
    "a\nb",
    "*/ fun f() {}",
    "é",
    "数字",
    "😀",
    "`",
    "\0",
    "",
    "a b:0;c/d",
    "</string>",
    "]]>",
    "{{package}}",
]


@pytest.mark.parametrize("package", ["com.example.digits", "a.b", "org.my_app2.X"])
def test_packages_that_are_taken(package):
    assert check_package(package) == package


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("digits", r"received 'digits'. Try com.example.digits"),
        ("", r"in which '' is no part"),
        ("com..digits", r"in which '' is no part"),
        (".com.digits", r"in which '' is no part"),
        ("com.example.", r"in which '' is no part"),
        ("com.1example", r"in which '1example' is no part"),
        ("com._example", r"in which '_example' is no part"),
        ("com.ex-ample", r"in which 'ex-ample' is no part"),
        ("com.exämple", r"in which 'exämple' is no part"),
        ("com.example\n.x", r"is no part"),
        ("com.example/../x", r"is no part"),
        ("com.new.app", r"'new' is a keyword.*Try com.new_.app"),
        ("com.fun.in", r"'fun' is a keyword.*Try com.fun_.in_"),
        ("java.example", r"which is Java's or Kotlin's own. Try com.java.example"),
        ("kotlin.example", r"which is Java's or Kotlin's own. Try com.kotlin.example"),
    ],
)
def test_packages_that_are_refused(package, message):
    with pytest.raises(ValueError, match=message) as error:
        check_package(package)
    assert "expected a Java package" in str(error.value)


def test_package_must_be_a_text():
    with pytest.raises(TypeError, match="received int"):
        check_package(3)


@pytest.mark.parametrize(
    ("name", "base", "file"),
    [
        ("digits", "Digits", "digits"),
        ("mobilenet_v1-0.25", "MobilenetV1025", "mobilenet_v1_0_25"),
        ("My Model (1)", "MyModel1", "my_model_1"),
        ("digits_model", "Digits", "digits_model"),
        ("model", "Tflite", "model"),
        ("3d", "Tflite3d", "3d"),
        ("数字", "Tflite", "model"),
        ("compiled", "TfliteCompiled", "compiled"),  # CompiledModel is LiteRT's.
        ("_hidden", "Hidden", "hidden"),
        ("../../x", "X", "x"),
    ],
)
def test_classes_and_files_of_a_model(name, base, file):
    assert (class_base(name), file_base(name)) == (base, file)


def test_identifiers_are_valid_and_differ():
    names = ["serving_default_x:0", "x", "x", "X", "class", "count", "", "0", "é", *HOSTILE]
    made = identifiers(names, "input")
    assert made[:9] == [
        "servingDefaultX0",
        "x",
        "x_2",
        "x_3",
        "class_",
        "count_",
        "input",
        "input0",
        "input_2",
    ]
    assert len(set(made)) == len(names)
    assert all(re.fullmatch("[a-z][A-Za-z0-9_]*", text) for text in made)
    assert not KEYWORDS & set(made)


def test_identifiers_of_long_names_are_short_and_differ():
    made = identifiers(["x" * 999, "x" * 1000], "input")
    assert made == ["x" * 40, "x" * 40 + "_2"]


@pytest.mark.parametrize("text", HOSTILE)
def test_kotlin_texts_hold_the_text_and_nothing_else(text):
    literal = kotlin_text(text)
    assert literal.isascii()
    assert re.fullmatch(r'"([^"\\$`\x00-\x1f]|\\u[0-9a-f]{4})*"', literal)
    units = re.sub(r"\\u(....)", lambda u: chr(int(u[1], 16)), literal[1:-1])
    assert units.encode("utf-16-be", "surrogatepass").decode("utf-16-be") == text


def test_kotlin_text_by_hand():
    assert kotlin_text('a"$b\n😀') == '"a\\u0022\\u0024b\\u000a\\ud83d\\ude00"'


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_android_texts_are_xml(text):
    read = ElementTree.fromstring(f"<string>{android_text(text)}</string>").text or ""
    assert re.sub(r"\\(.)", r"\1", read) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("It's", "It\\'s"),
        ('"A" & <b>', '\\"A\\" &amp; &lt;b&gt;'),
        ("@me", "\\@me"),
        ("?attr", "\\?attr"),
        ("a  b", "a \\u0020b"),
        ("a\\n", "a\\\\n"),
    ],
)
def test_android_texts_by_hand(text, written):
    assert android_text(text) == written


def test_values_are_not_looked_into():
    values = {"agp": "{{litert}} {{#x}}", "litert": "1"}
    assert 'agp = "{{litert}} {{#x}}"' in fill("libs.versions.toml", values)


def test_missing_value_is_an_error():
    with pytest.raises(KeyError, match="litert"):
        fill("libs.versions.toml", {"agp": "1"})


def test_keywords_cover_those_of_both_languages():
    assert {"fun", "val", "typealias", "when", "int", "enum", "strictfp", "null"} <= KEYWORDS
    assert keyword.iskeyword("class")
