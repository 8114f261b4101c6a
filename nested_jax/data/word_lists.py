"""Adjectives and nouns for keys such as `quiet-harbour`, and lists of them from files."""

import pathlib

Words = tuple[tuple[str, ...], tuple[str, ...]]


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ADJECTIVES = _split(
    """
    able amber ancient ashen bold brave brief bright brisk broad calm careful cheap chilly clean clear clever cloudy
    coarse cold common copper cosy crisp curly curved damp dark dear deep dense dim distant dry dull dusty eager early
    easy elder empty equal even exact fair faint famous fast fierce fine firm flat foggy fond foreign formal frail free
    fresh frosty full gentle giant glad golden grand grave great green grey handy happy hardy heavy high hollow honest
    huge humble hungry icy idle inner iron jolly keen kind large late lean light lively local lonely long loose loud
    loyal lucky mellow merry mighty mild modest moist mossy muddy mute narrow neat new nimble noble northern odd old
    open orange outer pale patient plain pleasant polite proud pure purple quick quiet rapid rare ready red rich ripe
    robust rocky rough round royal rusty sandy scarlet sharp short shy silent silver simple sleepy slim slow small
    smooth snowy soft solid sour southern spare spicy steady steep stern stiff stout straight strange strict strong
    sturdy sunny sweet swift tall tame tart tender thick thin tidy tiny tired tough true upper vast violet warm wary
    weary western wet white whole wide wild windy wise wooden worthy yellow young zealous
    """
)

NOUNS = _split(
    """
    acorn actor anchor ankle apron arch arrow attic autumn axle badge bakery balcony bamboo banner barley barrel basin
    basket bay beach beacon bean bear bell bench berry bird blanket boat bonnet book boot border bottle boulder bow bowl
    branch brass bread brick bridge brook broom bucket buckle bugle burrow bus button cabin cable camel canal candle
    canoe canvas cap carpet cart castle cave cellar chain chalk chapel chart cheese cherry chest chimney circle cliff
    clock cloth cloud clover coast coat cobbler coin comet compass cook copper coral cottage cotton cradle crane crater
    creek cricket crow crown cup curtain daisy deer desert desk diary dock dome donkey door dove drum duck dune eagle
    easel echo elbow elm ember engine falcon farm fence fern ferry fiddle field finch flag flame flask fleet flint flute
    forest forge fort fountain fox frog furnace garden gate glacier glove goat grain grape guitar gull hammer harbour
    harp hat hawk hazel hedge helmet heron hill hinge hive honey hook horn horse hotel inn island ivy jacket jar jetty
    jewel jug kettle key kite ladder lagoon lake lamp lantern lark lawn leaf lemon library lily lion lock loom lute
    magnet mango map maple marble market mask mast meadow melon mill mint mirror mole monk moon moss moth mountain mouse
    needle nest net oak oar oasis ocean olive onion orchard otter oven owl oyster paddle page palace palm paper parcel
    parrot path pear pebble pencil pepper piano pigeon pillow pine pipe plain planet plough plum pocket pond poplar port
    prairie prism pump puzzle quarry quill rabbit raft rail rain raven reed ribbon ridge ring river robin rocket roof
    root rope rose saddle sail salmon scarf school seal seed shed shell shepherd ship shoe shore shovel sky slate sled
    slope snail spade sparrow spice spoon spring spruce stable star station statue stone stool storm stove stream street
    swan table tailor teapot temple tent thistle thread throne thunder tiger timber torch tower train tree trumpet tulip
    tunnel turtle valley vase velvet vessel village vine violin wagon wall walnut water weaver well whale wheat wheel
    whistle willow window wing winter wolf wood wool yard zebra
    """
)


def load_words(adjectives: str, nouns: str) -> Words:
    """Lists of words from two files with a word a line.

    RULER's keys come from the lists of the package wonderwords (`adjectivelist.txt` and `nounlist.txt`).

    Raises:
      ValueError: if a file is missing or empty.
    """
    found = []
    for name, path in (("adjectives", adjectives), ("nouns", nouns)):
        file = pathlib.Path(path).expanduser()
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        words = tuple(line.strip() for line in lines if line.strip())
        if not words:
            raise ValueError(f"{name}: expected a file with a word a line, got {path}")
        found.append(words)
    return found[0], found[1]
