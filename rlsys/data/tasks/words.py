"""Word lists of the task families. Entries are lower case except for names; lists have no duplicates.

A word is in one category only, so that its category is unambiguous.
"""

from __future__ import annotations

from typing import NamedTuple


class Category(NamedTuple):
    """A category of things: `label` includes the article, `plural` is for lists."""

    label: str
    plural: str
    words: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES = (
    Category(
        "an animal",
        "animals",
        _words(
            "dog cat horse cow sheep goat lion tiger bear wolf fox rabbit mouse rat deer monkey elephant giraffe zebra camel donkey pig"
            " hen duck goose eagle owl crow frog snake lizard turtle whale dolphin shark spider ant bee penguin parrot hamster kangaroo"
            " panda leopard"
        ),
    ),
    Category(
        "a fruit",
        "fruits",
        _words(
            "apple pear banana grape mango melon peach kiwi grapefruit apricot nectarine strawberry raspberry blueberry pineapple papaya"
            " fig coconut"
        ),
    ),
    Category(
        "a vegetable",
        "vegetables",
        _words(
            "carrot potato onion cabbage lettuce spinach broccoli pea bean celery radish turnip garlic leek cauliflower asparagus parsnip"
            " beet kale"
        ),
    ),
    Category(
        "a color", "colors", _words("red blue green yellow purple pink brown black white gray turquoise beige crimson maroon teal scarlet")
    ),
    Category(
        "a body part",
        "body parts",
        _words(
            "hand foot arm leg head neck shoulder knee elbow finger toe nose ear eye mouth tongue back stomach heart ankle wrist hip thumb"
        ),
    ),
    Category(
        "a country",
        "countries",
        _words(
            "France Germany Spain Italy Japan China India Brazil Canada Mexico Egypt Kenya Norway Sweden Poland Greece Peru Cuba Chile"
            " Austria Portugal Denmark Finland Ireland Russia Nigeria Vietnam Thailand"
        ),
    ),
    Category("a tool", "tools", _words("hammer saw drill wrench screwdriver pliers axe shovel rake chisel ladder file spade crowbar hoe")),
    Category(
        "a musical instrument",
        "musical instruments",
        _words("piano guitar violin flute drum trumpet cello harp clarinet saxophone trombone banjo oboe tuba accordion harmonica"),
    ),
    Category(
        "a piece of furniture",
        "pieces of furniture",
        _words("table chair bed sofa desk shelf couch stool bench wardrobe cupboard dresser bookcase armchair cabinet"),
    ),
    Category(
        "a piece of clothing",
        "pieces of clothing",
        _words("shirt coat hat dress skirt sock shoe glove scarf jacket sweater jeans boot cap blouse belt shorts vest hoodie pajamas"),
    ),
    Category(
        "a vehicle",
        "vehicles",
        _words("car bus train truck bicycle airplane boat ship tram taxi van helicopter motorcycle tractor scooter ferry submarine"),
    ),
    Category(
        "a job",
        "jobs",
        _words(
            "doctor teacher nurse farmer baker pilot lawyer painter plumber singer driver waiter engineer dentist judge carpenter butcher"
            " tailor soldier journalist librarian"
        ),
    ),
    Category(
        "a sport",
        "sports",
        _words(
            "soccer tennis golf hockey basketball baseball swimming boxing rugby volleyball skiing wrestling badminton judo karate rowing"
            " surfing"
        ),
    ),
    Category(
        "a metal",
        "metals",
        _words("iron tin zinc steel brass nickel aluminum platinum titanium mercury tungsten magnesium lithium uranium"),
    ),
    Category(
        "a shape", "shapes", _words("circle square triangle rectangle oval pentagon hexagon cube sphere cone pyramid cylinder octagon")
    ),
    Category("a tree", "trees", _words("oak pine maple birch elm willow cedar spruce beech poplar redwood sequoia fir cypress")),
    Category(
        "a flower", "flowers", _words("tulip daisy lily orchid sunflower daffodil carnation poppy marigold peony begonia geranium hyacinth")
    ),
    Category(
        "a drink", "drinks", _words("water milk tea coffee juice beer wine soda cocoa lemonade whiskey cider smoothie vodka champagne")
    ),
    Category("a room", "rooms", _words("kitchen bedroom bathroom garage attic cellar hallway lounge nursery pantry library office")),
)

NOUNS = _words(
    "river lamp bridge candle window garden basket mirror letter ticket pencil bottle market forest mountain village castle valley desert"
    " harbor tower temple museum school church station kitchen ladder hammer pillow blanket carpet curtain button pocket wallet suitcase"
    " camera radio phone clock watch ring crown sword shield rope ball kite doll puzzle book paper map flag coin gift cake bread cheese"
    " butter sugar salt soup rice honey cookie pizza sandwich tree leaf flower seed root branch rock stone sand beach lake pond sea"
    " wave storm cloud rain snow wind star moon planet rocket robot machine wheel road street train truck boat ship car bus farm barn"
    " fence gate door roof wall floor room house tent bed chair table desk shelf box bag cup plate spoon fork knife pot pan bowl jar"
    " dog cat fox wolf bear lion tiger horse cow sheep goat pig duck hen frog fish shark whale snake bird king queen doctor teacher"
)
"""Nouns; none starts with a vowel letter, so that each takes the article "a"."""

ADJECTIVES = _words(
    "big small red blue green white black brown cold warm soft hard loud quiet fast slow clean dirty heavy light long short tall deep dark"
    " bright dry wet rich poor happy sad brave calm wild tame fresh strange simple pretty lovely golden silver wooden plain smooth rough"
    " sharp sweet bitter famous secret lonely gentle proud mighty tiny huge narrow wide round flat funny clever lazy busy"
)
"""Adjectives; none starts with a vowel letter."""

VERBS = _words(
    "sleeps runs jumps waits falls stands moves shines smiles hides turns stops swims sings works returns grows breaks floats dances"
)

NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
TENS = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = _words("first second third fourth fifth sixth seventh")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
