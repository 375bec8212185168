"""The words of the synthetic world in its three languages: captions, questions and answers.

Each language is a small subclass with the same methods, so the same scene can be spoken about in all of them. The words
are those that the nano tokenizer holds as single tokens. Grammar is only as large as the world: French agrees in
gender, Chinese has no spaces.
"""

from __future__ import annotations

import re
from typing import ClassVar

PAINT = {
    "red": (220, 30, 30),
    "green": (20, 160, 60),
    "blue": (30, 80, 220),
    "yellow": (245, 200, 20),
    "purple": (150, 50, 190),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star")

# What documents say. Short words, so that a word and a number fit into one cell.
WORDS = (
    "north south east west left right above below first second third last "
    "big small next sign price date word text row star heart ring"
).split()


class Language:
    """English; the others override its words. An `ask_` method returns (question, answer)."""

    describe = "Describe the picture."
    describe_long = "Describe the picture in a sentence."
    read = "Read the text."
    lookup = "What number is right of {word}?"
    comma, period, long_and = ", ", ".", " and "
    there_are = (
        "There is one shape: ",
        "There are two shapes: ",
        "There are three shapes: ",
        "There are four shapes: ",
    )
    places = ("top left", "top right", "bottom left", "bottom right")
    yes_no = ("yes", "no")
    sides: ClassVar = dict(left="left of", right="right of", above="above", below="below")

    def thing(self, color: str, shape: str) -> str:
        return f"{color} {shape}"

    def thing_at(self, color: str, shape: str, place: int) -> str:
        return f"{self.thing(color, shape)} {self.places[place]}"

    def a_thing_at(self, color: str, shape: str, place: int) -> str:
        return f"a {self.thing(color, shape)} at the {self.places[place]}"

    def answer(self, yes: bool) -> str:
        return self.yes_no[0 if yes else 1]

    def ask_color(self, shape: str, color: str) -> tuple[str, str]:
        return f"What color is the {shape}?", color

    def ask_shape(self, place: int, shape: str) -> tuple[str, str]:
        return f"What shape is at the {self.places[place]}?", shape

    def ask_total(self, count: int) -> tuple[str, str]:
        return "How many shapes are there?", str(count)

    def ask_count(self, shape: str, count: int) -> tuple[str, str]:
        return f"How many {shape}s are there?", str(count)

    def ask_exist(self, color: str, shape: str, yes: bool, place: int | None = None) -> tuple[str, str]:
        where = "" if place is None else f" at the {self.places[place]}"
        return f"Is there a {color} {shape}{where}?", self.answer(yes)

    def ask_place(self, color: str, shape: str, place: int) -> tuple[str, str]:
        return f"Where is the {color} {shape}?", self.places[place]

    def ask_side(self, first: tuple[str, str], side: str, second: tuple[str, str], yes: bool) -> tuple[str, str]:
        question = f"Is the {self.thing(*first)} {self.sides[side]} the {self.thing(*second)}?"
        return question, self.answer(yes)


class French(Language):
    describe = "Décris l'image."
    describe_long = "Décris l'image en une phrase."
    read = "Lis le texte."
    lookup = "Quel nombre est à droite de {word} ?"
    long_and = " et "
    there_are = ("Il y a une forme : ", "Il y a deux formes : ", "Il y a trois formes : ", "Il y a quatre formes : ")
    places = ("en haut à gauche", "en haut à droite", "en bas à gauche", "en bas à droite")
    yes_no = ("oui", "non")
    sides: ClassVar = dict(left="à gauche", right="à droite", above="au-dessus", below="au-dessous")
    nouns: ClassVar = dict(circle="cercle", square="carré", triangle="triangle", star="étoile")
    colors: ClassVar = dict(  # masculine, feminine
        red=("rouge", "rouge"),
        green=("vert", "verte"),
        blue=("bleu", "bleue"),
        yellow=("jaune", "jaune"),
        purple=("violet", "violette"),
        black=("noir", "noire"),
    )

    def thing(self, color: str, shape: str) -> str:
        return f"{self.nouns[shape]} {self.colors[color][shape == 'star']}"

    def a(self, shape: str) -> str:
        return "une" if shape == "star" else "un"

    def the(self, shape: str, noun: str) -> str:
        return f"l'{noun}" if shape == "star" else f"le {noun}"

    def of_the(self, shape: str, noun: str) -> str:
        return f"de l'{noun}" if shape == "star" else f"du {noun}"

    def a_thing_at(self, color: str, shape: str, place: int) -> str:
        return f"{self.a(shape)} {self.thing_at(color, shape, place)}"

    def ask_color(self, shape: str, color: str) -> tuple[str, str]:
        question = f"Quelle est la couleur {self.of_the(shape, self.nouns[shape])} ?"
        return question, self.colors[color][shape == "star"]

    def ask_shape(self, place: int, shape: str) -> tuple[str, str]:
        return f"Quelle forme est {self.places[place]} ?", self.nouns[shape]

    def ask_total(self, count: int) -> tuple[str, str]:
        return "Combien de formes y a-t-il ?", str(count)

    def ask_count(self, shape: str, count: int) -> tuple[str, str]:
        return f"Combien {'d' + chr(39) if shape == 'star' else 'de '}{self.nouns[shape]}s y a-t-il ?", str(count)

    def ask_exist(self, color: str, shape: str, yes: bool, place: int | None = None) -> tuple[str, str]:
        where = "" if place is None else f" {self.places[place]}"
        return f"Y a-t-il {self.a(shape)} {self.thing(color, shape)}{where} ?", self.answer(yes)

    def ask_place(self, color: str, shape: str, place: int) -> tuple[str, str]:
        return f"Où est {self.the(shape, self.thing(color, shape))} ?", self.places[place]

    def ask_side(self, first: tuple[str, str], side: str, second: tuple[str, str], yes: bool) -> tuple[str, str]:
        a, b = self.the(first[1], self.thing(*first)), self.of_the(second[1], self.thing(*second))
        return f"Est-ce que {a} est {self.sides[side]} {b} ?", self.answer(yes)


class Chinese(Language):
    describe = "请描述图片。"
    describe_long = "请用中文描述图片。"
    read = "请读出文字。"
    lookup = "{word}右边的数字是多少？"
    comma, period, long_and = "，", "。", "，"
    there_are = ("有一个形状：", "有两个形状：", "有三个形状：", "有四个形状：")
    places = ("左上", "右上", "左下", "右下")
    yes_no = ("是", "不是")
    sides: ClassVar = dict(left="左边", right="右边", above="上方", below="下方")
    nouns: ClassVar = dict(circle="圆形", square="方形", triangle="三角形", star="星形")
    colors: ClassVar = dict(red="红色", green="绿色", blue="蓝色", yellow="黄色", purple="紫色", black="黑色")

    def thing(self, color: str, shape: str) -> str:
        return self.colors[color] + self.nouns[shape]

    def thing_at(self, color: str, shape: str, place: int) -> str:
        return self.thing(color, shape) + self.places[place]

    def a_thing_at(self, color: str, shape: str, place: int) -> str:
        return f"{self.places[place]}是{self.thing(color, shape)}"

    def ask_color(self, shape: str, color: str) -> tuple[str, str]:
        return f"{self.nouns[shape]}是什么颜色？", self.colors[color]

    def ask_shape(self, place: int, shape: str) -> tuple[str, str]:
        return f"{self.places[place]}是什么形状？", self.nouns[shape]

    def ask_total(self, count: int) -> tuple[str, str]:
        return "有几个形状？", str(count)

    def ask_count(self, shape: str, count: int) -> tuple[str, str]:
        return f"有几个{self.nouns[shape]}？", str(count)

    def ask_exist(self, color: str, shape: str, yes: bool, place: int | None = None) -> tuple[str, str]:
        where = "" if place is None else self.places[place]
        return f"{where}有{self.thing(color, shape)}吗？", "有" if yes else "没有"

    def ask_place(self, color: str, shape: str, place: int) -> tuple[str, str]:
        return f"{self.thing(color, shape)}在哪个角？", self.places[place]

    def ask_side(self, first: tuple[str, str], side: str, second: tuple[str, str], yes: bool) -> tuple[str, str]:
        question = f"{self.thing(*first)}在{self.thing(*second)}的{self.sides[side]}吗？"
        return question, self.answer(yes)


LANGUAGES: dict[str, Language] = {"en": Language(), "zh": Chinese(), "fr": French()}
ENGLISH = LANGUAGES["en"]


# ---- the words of a text, to count and compare them

_HAN_KANA = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
_HAN_KANA += "\U00020000-\U0003ffff"
_BORDER = re.compile(rf"(?=[{_HAN_KANA}])|(?<=[{_HAN_KANA}、。！，：；？])(?=\w)")
COMMAS = str.maketrans("，、", "  ", ",")  # for `translate`: takes them out of a text


def split_words(text: str) -> list[str]:
    """Split a text at white space, and before each character of Chinese and Japanese, which put none between words.

    So each of these characters counts as a word, as in the usual error rates of such texts; a mark that follows stays
    with it, as with a word of English. Korean has spaces.

    Example:
        >>> split_words("A red star. 红色星形，B2。")
        ['A', 'red', 'star.', '红', '色', '星', '形，', 'B2。']
    """
    return _BORDER.sub(" ", text).split()
