"""Facts that the knowledge families ask for: capitals, opposites, plurals, past tenses. Tiers follow the difficulty levels."""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    """Entries are separated by semicolons, the parts of an entry by a slash."""
    return tuple(tuple(part.strip() for part in entry.split("/")) for entry in text.split(";"))


CAPITALS = _pairs(
    "France/Paris; Germany/Berlin; Italy/Rome; Spain/Madrid; England/London; Japan/Tokyo; China/Beijing; Russia/Moscow; Egypt/Cairo;"
    " Greece/Athens; Canada/Ottawa; Australia/Canberra; Portugal/Lisbon; Ireland/Dublin; Austria/Vienna; Poland/Warsaw; Sweden/Stockholm;"
    " Norway/Oslo; Denmark/Copenhagen; Finland/Helsinki; Belgium/Brussels; Hungary/Budapest; Turkey/Ankara; Cuba/Havana; Peru/Lima;"
    " Argentina/Buenos Aires; Chile/Santiago; Kenya/Nairobi; Iraq/Baghdad; Iran/Tehran; Syria/Damascus; Thailand/Bangkok; Vietnam/Hanoi;"
    " India/New Delhi; Indonesia/Jakarta; Scotland/Edinburgh; Wales/Cardiff; Ukraine/Kyiv; Romania/Bucharest; Bulgaria/Sofia;"
    " Croatia/Zagreb; Serbia/Belgrade; Iceland/Reykjavik; Colombia/Bogota; Venezuela/Caracas; Ecuador/Quito; Uruguay/Montevideo;"
    " Jamaica/Kingston; Morocco/Rabat; Libya/Tripoli; Sudan/Khartoum; Lebanon/Beirut; Jordan/Amman; Nepal/Kathmandu; Pakistan/Islamabad;"
    " Afghanistan/Kabul; Bangladesh/Dhaka; Ethiopia/Addis Ababa; Brazil/Brasilia; Cambodia/Phnom Penh"
)
RARE_CAPITALS = _pairs(
    "Estonia/Tallinn; Latvia/Riga; Lithuania/Vilnius; Slovenia/Ljubljana; Slovakia/Bratislava; Albania/Tirana; Cyprus/Nicosia;"
    " Malta/Valletta; Georgia/Tbilisi; Armenia/Yerevan; Azerbaijan/Baku; Mongolia/Ulaanbaatar; Laos/Vientiane; Oman/Muscat; Qatar/Doha;"
    " Ghana/Accra; Senegal/Dakar; Uganda/Kampala; Rwanda/Kigali; Zambia/Lusaka; Zimbabwe/Harare; Angola/Luanda; Mali/Bamako;"
    " Somalia/Mogadishu; Paraguay/Asuncion; Honduras/Tegucigalpa; Nicaragua/Managua; Namibia/Windhoek; Tunisia/Tunis; Bhutan/Thimphu"
)

OPPOSITES = _pairs(
    "hot/cold/warm/chilly; big/small/large/little; happy/sad/glad/unhappy; fast/slow/quick/sluggish; rich/poor/wealthy/needy;"
    " strong/weak/powerful/feeble; hard/soft/solid/gentle; loud/quiet/noisy/silent; clean/dirty/tidy/filthy; brave/cowardly/bold/timid;"
    " old/young/aged/youthful; easy/difficult/simple/tricky; bright/dark/shiny/gloomy; smart/stupid/clever/foolish; begin/end/start/finish;"
    " love/hate/adore/dislike; full/empty/packed/vacant; wet/dry/damp/arid; thick/thin/fat/slim; wide/narrow/broad/tight;"
    " true/false/correct/untrue; sharp/blunt/pointed/dull; polite/rude/courteous/impolite; calm/nervous/relaxed/anxious;"
    " ancient/modern/antique/recent; victory/defeat/triumph/loss; friend/enemy/pal/foe; arrive/leave/reach/depart; buy/sell/purchase/trade;"
    " create/destroy/make/ruin; accept/refuse/agree/reject; generous/stingy/giving/greedy; cruel/kind/mean/caring; ugly/beautiful/hideous/pretty;"
    " safe/dangerous/secure/risky; deep/shallow/bottomless/superficial; tall/short/high/brief; light/heavy/weightless/massive;"
    " early/late/prompt/tardy; near/far/close/distant; up/down/upward/downward; open/shut/unlocked/sealed; laugh/cry/giggle/weep;"
    " push/pull/shove/drag; remember/forget/recall/overlook; lazy/hardworking/idle/diligent; success/failure/win/flop;"
    " peace/war/harmony/battle; always/never/forever/rarely; appear/vanish/emerge/disappear; smooth/rough/even/bumpy;"
    " sweet/bitter/sugary/sour; fresh/stale/new/rotten; increase/decrease/grow/shrink; attack/defend/assault/protect;"
    " allow/forbid/permit/ban; borrow/lend/take/loan; healthy/sick/fit/ill; guilty/innocent/criminal/blameless; proud/ashamed/arrogant/humble"
)
"""(word, its opposite, a synonym of the word, a synonym of the opposite)"""

PLURALS = (
    _pairs(
        "dog/dogs; cat/cats; book/books; tree/trees; car/cars; house/houses; apple/apples; lamp/lamps; chair/chairs; river/rivers;"
        " friend/friends; teacher/teachers; window/windows; garden/gardens; box/boxes; fox/foxes; bus/buses; class/classes; dish/dishes;"
        " brush/brushes; church/churches; watch/watches; match/matches; beach/beaches; bench/benches; peach/peaches; glass/glasses;"
        " dress/dresses; wish/wishes; lunch/lunches; tax/taxes; kiss/kisses; baby/babies; city/cities; lady/ladies; party/parties;"
        " story/stories; country/countries; berry/berries; cherry/cherries; puppy/puppies; family/families; body/bodies; army/armies;"
        " fly/flies; copy/copies; boy/boys; toy/toys; day/days; key/keys; monkey/monkeys; donkey/donkeys; turkey/turkeys; valley/valleys;"
        " photo/photos; piano/pianos; radio/radios; potato/potatoes; tomato/tomatoes; hero/heroes; echo/echoes; bag/bags; cup/cups;"
        " ship/ships; bird/birds; wall/walls; road/roads; sandwich/sandwiches; witch/witches; branch/branches; speech/speeches; coach/coaches"
    ),
    _pairs(
        "child/children; man/men; woman/women; foot/feet; tooth/teeth; goose/geese; mouse/mice; ox/oxen; person/people; leaf/leaves;"
        " wolf/wolves; knife/knives; wife/wives; life/lives; half/halves; shelf/shelves; loaf/loaves; thief/thieves; calf/calves; elf/elves;"
        " scarf/scarves; fireman/firemen; policeman/policemen; grandchild/grandchildren; snowman/snowmen; louse/lice"
    ),
    _pairs(
        "cactus/cacti; fungus/fungi; crisis/crises; analysis/analyses; thesis/theses; oasis/oases; criterion/criteria; basis/bases;"
        " bacterium/bacteria; stimulus/stimuli; nucleus/nuclei; alumnus/alumni; hypothesis/hypotheses; diagnosis/diagnoses; parenthesis/parentheses;"
        " larva/larvae; vertebra/vertebrae; radius/radii; axis/axes; phenomenon/phenomena; ellipsis/ellipses; stratum/strata"
    ),
)

PASTS = (
    _pairs(
        "go/went; see/saw; eat/ate; run/ran; take/took; give/gave; come/came; make/made; buy/bought; bring/brought; think/thought;"
        " catch/caught; teach/taught; write/wrote; drive/drove; ride/rode; speak/spoke; break/broke; choose/chose; wake/woke; know/knew;"
        " grow/grew; throw/threw; fly/flew; draw/drew; swim/swam; sing/sang; drink/drank; begin/began; ring/rang; sit/sat; find/found;"
        " hold/held; tell/told; sell/sold; stand/stood; lose/lost; send/sent; spend/spent; build/built; keep/kept; sleep/slept; feel/felt;"
        " leave/left; meet/met; win/won; get/got; hear/heard; say/said; pay/paid; wear/wore; walk/walked; talk/talked; play/played;"
        " jump/jumped; work/worked; look/looked; open/opened; stop/stopped; plan/planned; carry/carried; study/studied; try/tried;"
        " cry/cried; hope/hoped; dance/danced; smile/smiled; visit/visited; enjoy/enjoyed; drop/dropped"
    ),
    _pairs(
        "fall/fell; steal/stole; hide/hid; shake/shook; bite/bit; blow/blew; freeze/froze; forget/forgot; fight/fought; seek/sought;"
        " dig/dug; hang/hung; stick/stuck; strike/struck; swing/swung; feed/fed; lead/led; lend/lent; bend/bent; sweep/swept; weep/wept;"
        " shoot/shot; rise/rose; sink/sank; tear/tore; swear/swore; hurry/hurried; marry/married; beg/begged; hug/hugged"
    ),
    _pairs(
        "arise/arose; creep/crept; cling/clung; fling/flung; forsake/forsook; spring/sprang; shrink/shrank; stride/strode; bind/bound;"
        " grind/ground; wind/wound; weave/wove; flee/fled; breed/bred; sling/slung; slay/slew; bury/buried; admit/admitted; refer/referred;"
        " occur/occurred; prefer/preferred; spin/spun; sting/stung; stink/stank; tread/trod"
    ),
)
