"""The text that the nano tokenizer is trained on: words and sentences of the synthetic world.

Three languages, written by hand and frozen. Nothing here is random and nothing is read from disk,
so the same tokenizer comes out on every machine. Editing this file changes `tokenizer.json`, and
every checkpoint trained with the old one breaks without an error: a test guards its checksum.

BPE counts pre-tokens ("red", " red", "Red"), never pairs of words. So the sentences only need the
right words in the right written forms, in roughly the right proportion.
"""

# How often a forced word is repeated. High enough that the merges of these words come before all others.
FORCED = 2000

# Words that must be one token inside a sentence, so with the space before them.
WORLD_EN = """
red green blue yellow orange purple black white gray
circle square triangle star diamond cross ring heart
top bottom left right center middle above below
north south east west northwest northeast southwest southeast
zero one two three four five six seven eight nine ten yes no
shape shapes color picture image text number row column word sign price total date
there is are the a an at in of and to on it this that with what how many count
first second third fourth last next big small
""".split()

WORLD_FR = """
rouge vert bleu jaune orange violet noir blanc gris verte bleue noire blanche grise violette
cercle carré triangle étoile losange croix anneau cœur rouges jaunes losanges
haut bas gauche droite centre milieu nord sud est ouest
zéro un une deux trois quatre cinq six sept huit neuf dix
la le les de du des en au à et il y dans couleur forme formes nombre texte image total ligne mot
""".split()

# Forms without the space: they begin an answer, a caption, a question or a turn.
BARE = """
red green blue yellow orange purple black white gray
circle square triangle star diamond cross ring heart top bottom left right center
yes no Yes No total A The There It What How Which Where Is Are Read Describe Answer
rouge vert bleu jaune violet noir blanc gris cercle carré étoile losange croix anneau cœur
oui non Oui Non Il Un Une Quelle Combien
system user assistant You
""".split()

# Chinese is written without spaces: the spaces below stand between words, as a segmenter puts them.
WORLD_ZH = """
红色 绿色 蓝色 黄色 橙色 紫色 黑色 白色 灰色
圆形 方形 正方形 三角形 星形 菱形 十字 圆环 心形
左上 右上 左下 右下 左边 右边 上方 下方 中间 东 南 西 北 角
零 一 二 三 四 五 六 七 八 九 十 两 百 个 是 有 没有 不 的 在 和 吗 了 这 里 几 多少 什么
颜色 形状 图 图片 文字 数字 数 行 列 第 总 回答 描述 读 出 词 中文 请 用 大 小 ， 。 ？ ：
""".split()

COLORS = WORLD_EN[:9]
SHAPES = WORLD_EN[9:17]
SHAPES_MANY = "circles squares triangles stars diamonds crosses rings hearts".split()
PLACES = ["top left", "top right", "bottom left", "bottom right", "center", "left", "right", "middle"]
SIDES = ["above", "below", "left of", "right of", "north of", "south of", "east of", "west of"]
COUNTS = "zero one two three four five six seven eight nine ten".split()
ORDER = "first second third fourth fifth last".split()
TENS = """
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety hundred
""".split()
DOCUMENT = """
exit open closed sale coffee tea milk bread butter cheese apple banana water juice soup salad rice
fish egg cake sugar salt pizza sandwich lunch dinner breakfast menu hotel bank school station airport
park museum library hospital police market shop store office street road bridge garden house door
window room floor table chair book paper pen card ticket gate train bus taxi car bike stop slow
danger warning caution push pull enter private parking toilet men women free new hot cold fresh
best price special offer today only welcome thank you please wait here out of order help info phone
email name address city country day month year time hour minute week monday tuesday wednesday
thursday friday saturday sunday january february march april may june july august september october
november december invoice receipt order item quantity amount unit cost tax total subtotal discount
cash change paid balance account page title chapter section figure chart report summary list note
letter form code size weight speed score level point game team player music movie photo camera
computer keyboard mouse screen cloud sun moon rain snow wind tree flower leaf river lake sea beach
mountain island bird cat dog horse cow sheep bear lion shoe shirt hat coat bag box bottle cup plate
knife fork spoon lamp clock key ball boat ship plane
""".split()

EN = """
{color} {shape} {place}, {color2} {shape2} {place2}.
{Color} {shape} {place}, {color2} {shape2} {place2}.
a {color} {shape} at the {place}
There is a {color} {shape} at the {place}.
There is an orange {shape} in the {place} and a {color2} {shape2} in the {place2}.
There are {count} shapes: a {color} {shape} at the {place}, a {color2} {shape2} at the {place2}.
There are {count} {color} {shapes} in the picture. It is a small picture with {count} {shapes2}.
The {color} {shape} is {side} the {color2} {shape2}. The {shape} is {color}.
The picture shows {count} objects on a {color} background.
How many {color} {shapes} are there? {Count}.
How many shapes are there in the image? There are {count}.
What color is the {shape} at the {place}? It is {color}.
What shape is at the {place}? A {shape}.
What is at the {place}? A {color} {shape}.
What is {side} the {shape}? The {color} {shape2}.
Where is the {color} {shape}? At the {place}.
Which shape is {color}? Which {shape} is next to the {shape2}?
Is there a {color} {shape}? Yes, there is. No, there is not.
Is the {shape} {color}? Yes. No. yes no
Are there more {color} {shapes} than {color2} {shapes2}? Yes, there are. No.
Do both pictures show a {color} {shape}? How many images are there?
Read the text. The text says "{doc}". The sign says "{DOC}".
Read all the numbers. Read the {order} row. Read the number in the {order} column.
What number is in the {order} row? What is the number at the {place}? The number is {count}.
What is the total? The total is {n}.{n}. What is the price of the {doc}? What is the date?
What does the sign say? {Doc}. What is written on the banner at the {place}?
How much is the {doc}? The {doc} costs ${n}.{n}.
Describe the picture. Describe this image in one sentence. Describe the picture in detail.
Answer in one word. Answer in English. Answer in Chinese. Answer in French. Answer yes or no.
Answer with a number. Answer the question. Answer in a full sentence. Answer briefly.
{Doc} {n} x {n} {n}.{n} TOTAL {n}.{n} Total {n} Tax {n} Date 20{n}-{n}-{n}
{DOC} {DOC} {n} {Color} {shape} {tens}
system user assistant image video frame slice token
You are a helpful assistant.
""".strip().splitlines()

# Captions as the web has them.
NOISE = """
photo of {doc}, {color} {doc}, best {doc} 20{n}, free shipping, click here to see more
IMG_{n}{n}.jpg {doc} | {Doc} {n} - buy {doc} online!
""".strip().splitlines()

FR = """
{forme} {couleur} {lieu}, {forme2} {couleur2} {lieu2}.
{Forme} {couleur} {lieu}. Un {forme} {couleur} {lieu}.
Il y a un {forme} {couleur} {lieu} et une {forme2} {couleur2} {lieu2}.
Il y a {compte} formes : un {forme} {couleur}, une {forme2} {couleur2}.
Combien de {formes} {couleurs} y a-t-il ? {Compte}.
Combien y a-t-il de formes dans l'image ? Il y en a {compte}.
De quelle couleur est le {forme} {lieu} ? Il est {couleur}.
Quelle est la couleur de la {forme} {lieu} ? Quelle forme est {lieu} ?
Y a-t-il une {forme} {couleur} ? Oui. Non. oui non
Qu'y a-t-il {lieu} ? Où est le {forme} {couleur} ? Le {forme} est au-dessus du {forme2}.
La {forme} est à gauche de la {forme2}, au-dessous du {forme}, à droite des {formes}.
Lis le texte. Lis les nombres. Quel est le total ? Quel nombre est dans la première ligne ?
Décris l'image. Réponds en un mot. Réponds en français. Réponds en anglais.
""".strip().splitlines()

COULEURS = WORLD_FR[:9]
FORMES = WORLD_FR[15:23]
COULEURS_MANY = "rouges verts bleus jaunes oranges violets noirs blancs gris".split()
FORMES_MANY = "cercles carrés triangles étoiles losanges croix anneaux cœurs".split()
LIEUX = ["en haut à gauche", "en haut à droite", "en bas à gauche", "en bas à droite", "au centre"]
COMPTES = "zéro un deux trois quatre cinq six sept huit neuf dix".split()

ZH = """
图片 里 有 两 个 形状 ： 左上 是 红色 圆形 ， 右下 是 蓝色 方形 。
红色 圆形 左上 ， 蓝色 三角形 右下 。 绿色 星形 左下 ， 黄色 菱形 右上 。
有 几 个 红色 的 圆形 ？ 有 多少 个 三角形 ？ 图 中 有 三 个 形状 。
左上角 的 方形 是 什么 颜色 ？ 右下角 是 什么 ？ 中间 的 形状 是 什么 ？ 中央
有 没有 蓝色 的 星形 ？ 有 。 没有 。 是 。 不是 。 有 吗 ？ 是 的 。 对 。 错 。
紫色 十字 在 黑色 圆环 的 上方 。 白色 心形 在 灰色 菱形 的 左边 。 橙色 在 右边 下方 。
东 南 西 北 上 下 左 右 西北 东北 西南 东南 方 面 大 小 的 正方形 五角星 长方形
请 读 出 文字 。 读 出 所有 的 数字 。 第二 行 的 数字 是 多少 ？ 第一 列 。 第三 行 。
总计 是 多少 ？ 合计 价格 日期 元 年 月 日 。 请 描述 这 张 图片 。 描述 这 幅 图 。
请 用 中文 回答 。 用 英文 回答 。 用 一个 词 回答 。 请 回答 是 或 不是 。 这 是 什么 ？
咖啡 茶 牛奶 面包 水 米饭 鱼 出口 入口 开 关 打折 商店 银行 学校 酒店 车站 欢迎 ！ 、
""".strip().splitlines()

# The most frequent words of English, for text outside of the world.
COMMON = """
he she was were for his her they them their be been have had has from or by but not we us our you your
all can could would should will said say says do does did done if when then than so some any each about
out up down over into after before because through more most other another only also very just now new
old good well better best same different such own long little much many even still back again never always
time day year people man woman child world life hand part place case week work home house water word way
thing name night school country problem fact make made take took come came go goes went get got give find
found think know knew see saw seen look looks want use used tell ask seem feel try leave call keep let begin
show shows hear play run move live believe hold bring happen write written sit stand lose pay meet include
learn change lead understand watch follow stop speak read allow add spend grow walk win open
who whom whose why while where which under against during without within both few those these every
may might must shall being having going making using looking
answer answers question questions sentence picture pictures image images number numbers table text
""".split()

PROSE = """
A multimodal model reads a picture and a text and writes an answer.
The picture is cut into slices when it is larger than the view of the vision encoder.
Each slice keeps a shape close to the one the encoder saw during training.
The slices are compared with the ideal count, and the best grid wins.
An overview of the whole picture goes first, so that the model knows where every slice belongs.
Every slice becomes a grid of small patches, and every patch becomes one vector.
The vision encoder is a transformer: attention mixes the patches, and a small network changes each of them.
Positions tell the encoder where a patch lies, since attention alone does not know any order.
Because pictures come in many shapes, the table of positions is read with fractional coordinates.
The resampler holds a few learned queries which look at all patches and keep what is useful.
After the resampler a slice costs the same number of tokens, whatever its size was.
These visual tokens replace the placeholders in the text, and the language model reads them like words.
The language model predicts the next token from everything that stands before it.
Its loss is the average surprise over the tokens of the answer; the question is not counted.
Training goes through stages, and each stage has its own data, its own resolution and its own frozen parts.
First only the resampler learns, because the encoder and the language model are already good.
Then the encoder learns to see at a higher resolution.
Later documents, tables and signs teach the model to read small letters.
Noisy captions from the web are rewritten before they are used.
Short sequences are packed into one row, with a mask that keeps them apart.
Fine tuning on questions and answers makes the model follow instructions.
Short answers help with recognition, and long answers help with conversation.
A model can describe objects that are not there, which we call hallucination.
To reduce it, the model writes several answers, and each answer is split into single claims.
A second model checks every claim with a simple question: is it true or false?
The answer with fewer wrong claims is preferred over the other one.
Preference training raises the probability of the better answer compared with a frozen copy of the model.
The strength of this change is set by one number called beta.
A model that was trained in two languages often understands a third one after a little training.
Weights are stored in four bits to fit into the memory of a phone.
A block of weights shares one scale and one minimum, and these numbers are quantized again.
Less memory also means less time, since reading the weights is the slow part of decoding.
Some layers are more sensitive than others, so they keep six bits.
The key and value cache grows with every token; images fill it quickly.
When memory is short, the vision encoder is loaded first, used, and removed before the language model starts.
A larger number of slices shows more detail but costs more time.
We measure the model with fresh pictures which it has never seen during training.
A good test does not only say that something works; it would fail if the code were wrong.
Please look at the picture again and explain what you can see.
The next figure shows how the score depends on the width and the height of the image.
If the image is small, it is not cut at all.
You should guess the result before you run the cell.
This notebook needs about twenty minutes and one processor.
Read the code from top to bottom, because every step uses the one before.
Why does the grid have three columns and two rows?
There would be no difference if we had used another order.
Other models project every patch into the language model, therefore they need many more tokens.
Some of them keep the aspect ratio, others pad the picture with black borders.
Video is a list of frames, and each frame is treated as one image.
It's easy to change the code, but don't change the tokenizer: that's where the ids come from.
They're the same numbers; we've checked them, and you'll see that nothing was lost.
Her friend said that his brother went home after work and made dinner for their children.
People from many countries have been living together in this city for over a hundred years.
She opened the window, looked outside and saw that it had started to rain.
Could you tell me which bus goes to the station?
I think he wanted something better, but there was nothing left in the store.
Most of the time these things are simple when someone shows them to you.
The old man walked along the river until the evening light was gone.
Big questions need good evidence, while small questions often need only a quick look.
What happens when two pictures are given in the same message?
""".strip().splitlines()

FRENCH_PROSE = """
Un modèle multimodal lit une image et un texte, puis il écrit une réponse.
L'image est découpée en tranches quand elle est plus grande que la vue de l'encodeur.
Chaque tranche garde une forme proche de celle que le modèle connaît déjà.
Les mots qui sont dans le texte et dans l'image donnent la réponse à la question.
Il ne faut pas changer cette table, sinon tous les nombres seront différents.
C'est la même chose, mais avec moins de mémoire et plus de vitesse pour être prêt où il faut.
""".strip().splitlines()

CHINESE_PROSE = """
这 个 模型 看 图片 ， 读 文字 ， 然后 回答 问题 。
大 的 图片 会 切 成 小 块 ， 每 块 用 同样 多 的 词 来 表示 。
我们 可以 用 手机 运行 它 。 你 好 ！ 谢谢 。 他 们 不 会 说 没有 看 到 的 东西 。
""".strip().splitlines()


def _fill(template, i):
    """Fills one template. Lists turn at different speeds, so that all their pairs come up."""

    def pick(words, step=1):
        return words[(i // step) % len(words)]

    doc, forme, compte = pick(DOCUMENT), pick(FORMES), pick(COMPTES)
    words = {
        "color": pick(COLORS),
        "shape": pick(SHAPES),
        "shapes": pick(SHAPES_MANY),
        "shapes2": pick(SHAPES_MANY, 5),
        "place": pick(PLACES, 3),
        "side": pick(SIDES, 2),
        "count": pick(COUNTS),
        "order": pick(ORDER),
        "tens": pick(TENS),
        "color2": pick(COLORS, 2),
        "shape2": pick(SHAPES, 5),
        "place2": pick(PLACES),
        "couleur": pick(COULEURS),
        "couleur2": pick(COULEURS, 2),
        "couleurs": pick(COULEURS_MANY),
        "forme": forme,
        "formes": pick(FORMES_MANY),
        "forme2": pick(FORMES, 3),
        "lieu": pick(LIEUX),
        "lieu2": pick(LIEUX, 2),
        "compte": compte,
        "doc": doc,
        "n": f"{i % 100:02d}",
        "Color": pick(COLORS).capitalize(),
        "Count": pick(COUNTS).capitalize(),
        "Doc": doc.capitalize(),
        "DOC": doc.upper(),
        "Forme": forme.capitalize(),
        "Compte": compte.capitalize(),
    }
    return template.format(**words)


def _grammar(templates, rounds):
    for i in range(rounds):
        for template in templates:
            yield _fill(template, i)


def _words(lines):
    """Cuts Chinese lines into words. An uncut run is one pre-token, and BPE would merge across words."""
    for line in lines:
        yield from line.split()


def corpus():
    """Yields the training lines. Repetition is the weight: forced words, then the grammar, then prose."""
    for word in [" " + w for w in WORLD_EN + WORLD_FR] + BARE:
        yield from [word] * FORCED
    for word in WORLD_ZH:
        yield from [word] * FORCED
        # Single characters too, or BPE glues the last byte of one to the first byte of the next.
        yield from list(word) * FORCED
    yield from _grammar(EN + FR, 360)
    yield from _grammar(NOISE, 120)
    for _ in range(150):
        yield from _words(ZH)
        yield from (" " + word for word in COMMON)
    for _ in range(100):
        yield from PROSE + FRENCH_PROSE
        yield from _words(CHINESE_PROSE)
        for word in DOCUMENT:
            yield from (" " + word, word, word.capitalize())
