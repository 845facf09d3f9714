"""Facts for the knowledge families: capitals, opposites, plurals, past tenses. Tiers correspond to difficulty levels."""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    """Parse entries separated by semicolons, with parts separated by slashes."""
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
    "hot/cold/warm/chilly/t; big/small/large/little/s; happy/sad/glad/unhappy/c; fast/slow/quick/sluggish/ms; "
    "rich/poor/wealthy/needy/cq; strong/weak/powerful/feeble/stvq; hard/soft/solid/gentle/tqc; loud/quiet/noisy/silent/tsc; "
    "clean/dirty/tidy/filthy/qt; brave/cowardly/bold/timid/cv; old/young/aged/youthful/aq; easy/difficult/simple/tricky/tqc; "
    "bright/dark/shiny/gloomy/tqc; smart/stupid/clever/foolish/ctq; begin/end/start/finish/amd; love/hate/adore/dislike/cdv; "
    "full/empty/packed/vacant/s; wet/dry/damp/arid/tq; thick/thin/fat/slim/stc; wide/narrow/broad/tight/st; "
    "true/false/correct/untrue/qc; sharp/blunt/pointed/dull/tcq; polite/rude/courteous/impolite/ct; "
    "calm/nervous/relaxed/anxious/ctv; ancient/modern/antique/recent/aq; victory/defeat/triumph/loss/vq; friend/enemy/pal/foe/vc; "
    "arrive/leave/reach/depart/mad; buy/sell/purchase/trade/d; create/destroy/make/ruin/dv; accept/refuse/agree/reject/dv; "
    "generous/stingy/giving/greedy/cq; cruel/kind/mean/caring/ctq; ugly/beautiful/hideous/pretty/qct; "
    "safe/dangerous/secure/risky/qvc; deep/shallow/bottomless/superficial/sc; tall/short/high/brief/s; "
    "light/heavy/weightless/massive/stcq; early/late/prompt/tardy/am; near/far/close/distant/sma; up/down/upward/downward/sm; "
    "open/shut/unlocked/sealed/mdqc; laugh/cry/giggle/weep/cd; push/pull/shove/drag/md; remember/forget/recall/overlook/d; "
    "lazy/hardworking/idle/diligent/cqm; success/failure/win/flop/vq; peace/war/harmony/battle/vc; always/never/forever/rarely/a; "
    "appear/vanish/emerge/disappear/md; smooth/rough/even/bumpy/tsq; sweet/bitter/sugary/sour/tcq; fresh/stale/new/rotten/taq; "
    "increase/decrease/grow/shrink/sm; attack/defend/assault/protect/vd; allow/forbid/permit/ban/dv; borrow/lend/take/loan/d; "
    "healthy/sick/fit/ill/qcs; guilty/innocent/criminal/blameless/qc; proud/ashamed/arrogant/humble/cq"
)
"""(word, its opposite, a synonym of the word, a synonym of the opposite, topics)

Topics are letters: s(ize), t(exture and sense), a(ge and time), m(otion), c(haracter), v (contest), d(eeds), q(uality). Entries that share
one may serve as opposites of each other ("easy" and "hard"), so a wrong answer never comes from such an entry.
"""

PLURALS = (
    _pairs(
        "dog/dogs; cat/cats; book/books; tree/trees; car/cars; house/houses; apple/apples; lamp/lamps; chair/chairs; river/rivers;"
        " friend/friends; teacher/teachers; window/windows; garden/gardens; box/boxes; fox/foxes; class/classes; dish/dishes;"
        " brush/brushes; church/churches; watch/watches; match/matches; beach/beaches; bench/benches; peach/peaches; glass/glasses;"
        " dress/dresses; wish/wishes; lunch/lunches; tax/taxes; kiss/kisses; baby/babies; city/cities; lady/ladies; party/parties;"
        " story/stories; country/countries; berry/berries; cherry/cherries; puppy/puppies; family/families; body/bodies; army/armies;"
        " fly/flies; copy/copies; boy/boys; toy/toys; day/days; key/keys; monkey/monkeys; donkey/donkeys; turkey/turkeys; valley/valleys;"
        " photo/photos; piano/pianos; radio/radios; potato/potatoes; tomato/tomatoes; hero/heroes; echo/echoes; bag/bags; cup/cups;"
        " ship/ships; bird/birds; wall/walls; road/roads; sandwich/sandwiches; witch/witches; branch/branches; speech/speeches"
    ),
    _pairs(
        "child/children; man/men; woman/women; foot/feet; tooth/teeth; goose/geese; mouse/mice; ox/oxen; leaf/leaves;"
        " wolf/wolves; knife/knives; wife/wives; life/lives; half/halves; shelf/shelves; loaf/loaves; thief/thieves; calf/calves;"
        " fireman/firemen; policeman/policemen; grandchild/grandchildren; snowman/snowmen; louse/lice"
    ),
    _pairs(
        "crisis/crises; analysis/analyses; thesis/theses; oasis/oases; basis/bases;"
        " bacterium/bacteria; stimulus/stimuli; alumnus/alumni; hypothesis/hypotheses; diagnosis/diagnoses; parenthesis/parentheses;"
        " axis/axes; ellipsis/ellipses; synthesis/syntheses; synopsis/synopses; emphasis/emphases; neurosis/neuroses; antithesis/antitheses"
    ),
)

PASTS = (
    _pairs(
        "go/went; see/saw; eat/ate; run/ran; take/took; give/gave; come/came; make/made; buy/bought; bring/brought; think/thought;"
        " catch/caught; teach/taught; write/wrote; drive/drove; ride/rode; speak/spoke; break/broke; choose/chose; know/knew;"
        " grow/grew; throw/threw; fly/flew; draw/drew; swim/swam; sing/sang; drink/drank; begin/began; sit/sat; find/found;"
        " hold/held; tell/told; sell/sold; stand/stood; lose/lost; send/sent; spend/spent; build/built; keep/kept; sleep/slept; feel/felt;"
        " leave/left; meet/met; win/won; get/got; hear/heard; say/said; pay/paid; wear/wore; walk/walked; talk/talked; play/played;"
        " jump/jumped; work/worked; look/looked; open/opened; stop/stopped; plan/planned; carry/carried; study/studied; try/tried;"
        " cry/cried; hope/hoped; dance/danced; smile/smiled; visit/visited; enjoy/enjoyed; drop/dropped"
    ),
    _pairs(
        "fall/fell; steal/stole; hide/hid; shake/shook; bite/bit; blow/blew; freeze/froze; forget/forgot; fight/fought; seek/sought;"
        " dig/dug; stick/stuck; strike/struck; swing/swung; feed/fed; lead/led; lend/lent; bend/bent; sweep/swept; weep/wept;"
        " shoot/shot; rise/rose; sink/sank; tear/tore; swear/swore; hurry/hurried; marry/married; beg/begged; hug/hugged"
    ),
    _pairs(
        "arise/arose; cling/clung; fling/flung; forsake/forsook; spring/sprang; shrink/shrank; stride/strode; bind/bound;"
        " grind/ground; flee/fled; breed/bred; sling/slung; slay/slew; bury/buried; admit/admitted; refer/referred;"
        " occur/occurred; prefer/preferred; spin/spun; sting/stung; stink/stank"
    ),
)
