"""Captions that say nothing of their image: file names, counters, calls to click, placeholders, bare addresses, dates and sizes.

One closed list. A pattern must match the *whole* caption (punctuation and quotes around it aside), so a caption that says
anything more stays. The languages are those whose phrase is known to us, a line each; others are not recognised.
The kinds follow what CC3M removed by hand-made prefixes and suffixes (Sharma et al., ACL 2018) and what LAION's tables hold.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def _any(*alternatives: str) -> str:
    return "(?:" + "|".join(alternatives) + ")"


_DIGITS = r"(?:n[o°º]\.? ?|№ ?|# ?|第)?\p{Nd}{1,5}"
_PICTURE = _any(
    "images?|img|photos?|photographs?|pictures?|pics?|pict|fig(?:ures?|\\.)?|slides?|pages?|thumb(?:nail)?s?|views?|screenshots?|untitled",
    "bild(?:er)?|fotos?|abb(?:ildung|\\.)?|seite",  # German, and "foto" in many others
    "photographie|vue",  # French
    "im[aá]gen(?:es)?|imagem|imagens|fotograf[ií]as?|immagin[ei]",  # Spanish, Portuguese, Italian
    "foto's|afbeelding(?:en)?",  # Dutch
    "zdj[eę]cie|obraz(?:ek)?|obr[aá]z(?:ek|ky)|fotografie",  # Polish, Czech
    "фото|фотография|изображение|картинка|рисунок|рис\\.?|зображення",  # Russian, Ukrainian
    "resim|g[oö]rsel|foto[gğ]raf|gambar|hình(?: ảnh)?|ảnh",  # Turkish, Indonesian, Vietnamese
    "图片?|圖片?|照片|图像|画像|写真|이미지|사진|그림",  # Chinese, Japanese, Korean
    "صورة|الصورة|عکس|تصویر|चित्र|तस्वीर|फ़ोटो|फोटो|ছবি",  # Arabic, Persian, Hindi, Bengali
)
_OF = _any("/", "of", "out of", "von", "sur", "de", "di", "do", "da", "van", "av", "ze?", "из", "з", "dari", "trên", "من", "از", "の", "중")
_COUNTER = _any(
    rf"{_PICTURE}[ _:\-]?{_DIGITS}(?: ?{_OF} ?{_DIGITS})?",
    rf"{_DIGITS} ?{_OF} ?{_DIGITS}(?: {_PICTURE})?",
    r"第? ?\p{Nd}+ ?[张張枚](?:目(?:の画像)?)?(?:图片|图|照片)?(?:[,，、 ]*共 ?\p{Nd}+ ?[张張])?",
    rf"{_DIGITS} ?(?:번째)? ?(?:이미지|사진)",
)

_CLICK = _any(
    "(?:please )?(?:click|tap|press|hover)(?: (?:here|on|image|photo|picture|thumbnail|the|this|above|below|or|tap))*"
    "(?: (?:to|for)(?: (?:an?|the|see|view|enlarge|zoom|expand|open|play|download|full|larger?|bigger|high|res(?:olution)?|sized?|show|"
    "images?|photos?|pictures?|version|video|details?|more|info(?:rmation)?|it|in|out|and|or|display|preview))+)?",
    "(?:view|see|show|open)(?: (?:the|a|full|larger?|bigger|full-?size|original|high-?res))+ (?:image|photo|picture|size|version|view)",
    "enlarge(?: (?:this )?(?:image|photo|picture))?|zoom(?: (?:in|image))?|read more|learn more|more info(?:rmation)?",
    "(?:bild |hier )?(?:an)?klicken(?: sie)?(?: (?:hier|auf das bild))?(?:,? (?:um|zum) (?:das bild )?(?:zu )?vergr(?:ö|oe)(?:ß|ss)ern)?",
    "(?:bild |zum )?vergr(?:ö|oe)(?:ß|ss)ern(?: (?:bitte )?(?:hier )?(?:an)?klicken)?",
    "cliquez (?:ici |sur (?:l'image|la photo) )?pour (?:agrandir|voir en grand|zoomer)(?: (?:l'image|la photo))?",
    "agrandir(?: (?:l'image|la photo))?",
    "(?:haga|haz) clic(?: (?:aqu[ií]|en la (?:imagen|foto)))?(?: para (?:ampliar|ver m[aá]s grande|agrandar)(?: la (?:imagen|foto))?)?",
    "ampliar(?: (?:la )?image[nm])?|clique(?: aqui| na (?:imagem|foto))?(?: para (?:ampliar|aumentar|ver)(?: a (?:imagem|foto))?)?",
    "(?:clicca|cliccare)(?: (?:qui|sull'immagine|sulla foto))?(?: per ingrandire(?: (?:l'immagine|la foto))?)?|ingrandisci",
    "klik(?: hier| op de (?:afbeelding|foto))?(?: (?:om te|voor een) vergrot(?:en|ing))?|vergroot(?: (?:de )?(?:afbeelding|foto))?",
    "klikn[iě]te(?: pro zv[ěe]tšení(?: (?:obrázku|fotografie))?)?|zvětšit(?: (?:obrázek|fotografii))?",
    "kliknij,? aby powiększyć(?: zdjęcie)?|powiększ(?: zdjęcie)?",
    "(?:нажмите|кликните|щелкните)(?: (?:здесь|сюда|на (?:фото|изображение|картинку)))?"
    "(?:,? (?:чтобы увеличить|для увеличения)(?: (?:фото|изображени[ея]))?)?",
    "увеличить(?: (?:фото|изображение))?|натисніть,? щоб збільшити|збільшити",
    "(?:resmi )?büyütmek için (?:resme |resmin üzerine )?tıklayın(?:ız)?|(?:resmi )?büyüt",
    "klik (?:di sini|gambar)?(?: ?untuk (?:memperbesar|melihat)(?: gambar)?)?",
    "(?:nhấn|nhấp|bấm|click)(?: chuột)?(?: vào (?:ảnh|hình|đây))? để (?:phóng to|xem ảnh lớn|xem)(?: ảnh| hình)?",
    "(?:点击|點擊|点此|单击)(?:图片|圖片|此处|这里|查看)*(?:放大|大图|大圖|原图|图片|圖片|查看)+",
    "(?:画像を?)?(?:クリック|タップ)(?:して|すると|で)?(?:画像を?)?(?:拡大|大きな画像|表示)*(?:します|する)?|(?:画像を)?拡大(?:する|表示)?",
    "(?:이미지를? ?)?클릭(?:하면|하시면|해서)?(?: ?(?:확대|크게|큰 이미지)(?:됩니다| ?보기)?)?|(?:이미지 )?(?:확대|크게) ?보기",
    "(?:اضغط|انقر)(?: هنا| على الصورة)?(?: (?:للتكبير|لتكبير الصورة|لتكبير))?|برای بزرگنمایی کلیک کنید",
    "(?:बड़ा करने|बड़ी तस्वीर देखने) के लिए (?:यहां )?क्लिक करें|বড় করতে (?:এখানে )?ক্লিক করুন",
)

_STOCK = _any(
    "(?:royalty[- ]free |free )?(?:stock|clip ?art|vector)s?"
    "(?:[- ](?:photos?|photography|images?|pictures?|illustrations?|vectors?|graphics?))?",
    "royalty[- ]free(?: (?:stock )?(?:photos?|images?|illustrations?|vectors?))?|free (?:photos?|images?|pictures?)",
    "(?:lizenzfreies? )?stock(?:foto|bild|vektor|photo)s?|photos? libres? de droits?|fotos? de (?:stock|archivo)|banco de imagens?",
    "стоковое фото|图库照片|ストックフォト",
)
_PLACEHOLDER = _any(
    "(?:(?:an?|the|this|my|new|main|default|sample|featured?|hero|cover|header|background|product|article|post|blog|preview|profile|"
    "thumbnail|user|team|company|site|website) )*(?:images?|photos?|pictures?|pics?|img|thumb(?:nail)?s?|avatar|logo|icon|banner|spacer|"
    "header|background|placeholder|slider?|graphic|screenshot|cover|preview|gallery)",
    "(?:image|photo|picture|img)(?: (?:is|was))? (?:not (?:available|found|yet available|loaded)|unavailable|missing|coming soon|"
    "loading|removed|deleted|credit|may contain|description)",
    "no (?:image|photo|picture|thumbnail|preview|caption|description|title|alt|alt text)(?: (?:available|found|yet|provided))?",
    "profile (?:photo|pic|picture|image) (?:for|of) .{1,40}|(?:embedded )?image permalink|embedded image|coming soon|loading|please wait",
    "(?:your )?(?:image )?(?:alt|alt[- ]?text|caption|title|description)(?: (?:goes )?here)?|lorem ipsum(?: dolor sit amet)?",
    "untitled(?: (?:document|image|design|photo))?|unnamed|unknown|undefined|null|none|nil|nan|n/?a|tbd|todo|false|true|object object",
    "advertisement|sponsored|share|facebook|twitter|instagram|pinterest|youtube|linkedin|whatsapp|menu|next|prev(?:ious)?|download",
    "(?:kein |das |ein )?(?:bild|foto)(?: (?:vorhanden|verfügbar))?|platzhalter|vorschau(?:bild)?|titelbild|profilbild",
    "(?:pas d'|une |l')?image(?: (?:non disponible|à la une))?|photo de profil|sans titre",
    "(?:sin |la |una )?(?:imagen|foto)(?: (?:no disponible|destacada|principal|de perfil))?|sin t[ií]tulo",
    "(?:sem )?(?:imagem|foto)(?: (?:indispon[ií]vel|de perfil))?|(?:nessuna )?immagine(?: non disponibile)?",
    "(?:geen )?(?:afbeelding|foto)(?: beschikbaar)?|(?:bez )?(?:obrázek|obrázku|zdjęcie)",
    "(?:без )?(?:фото|картинк[аи]|изображение|названия)(?: (?:отсутствует|недоступно))?|логотип",
    "(?:暂无|無|无|没有)?(?:图片|圖片|照片|图像)|占位图|缩略图|头像|标题",
    "(?:画像|写真|サムネイル|アイキャッチ画像|ロゴ|プロフィール画像)(?:なし|はありません)?",
    "(?:이미지|사진|썸네일|로고)(?: ?(?:없음|준비중))?",
    "صورة|لا توجد صورة|شعار|عکس|(?:hình )?ảnh(?: đại diện)?|hình|(?:resim|görsel|fotoğraf)(?: yok)?|gambar(?: tidak tersedia)?",
    "चित्र|तस्वीर|ছবি",
)

_MONTH = _any(
    "jan(?:uary?)?|feb(?:ruary?)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?",
    "märz|mai|jun[io]|jul[io]|dezember|janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre",
    "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre",
)
_CLOCK = r"\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?(?: ?[ap]\.?m\.?)?"
_DATE = _any(
    r"\d{4}[-./]\d{1,2}(?:[-./]\d{1,2})?|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}",
    rf"{_MONTH}\.?(?: \d{{1,2}}(?:st|nd|rd|th)?,?)? \d{{4}}|\d{{1,2}}(?:st|nd|rd|th|\.)? (?:de |of )?{_MONTH}\.?(?: de)?,? \d{{4}}",
    r"\d{4} ?[年년] ?(?:\d{1,2} ?[月월])? ?(?:\d{1,2} ?[日일])?",
)
_SIZE = _any(
    r"\d{1,5}(?:[.,]\d+)?(?: ?[x×*] ?\d{1,5}(?:[.,]\d+)?){1,2}(?: ?(?:px|pixels?|cm|mm|in|inch(?:es)?|\"|dpi))?",
    r"\d{1,6}(?:[.,]\d+)? ?(?:px|pixels?|[kmg]i?b|bytes?|dpi|megapixels?|mp)",
)
_DOMAIN = "com|net|org|info|biz|io|co|de|fr|es|it|nl|pl|cz|ru|cn|jp|kr|br|in|uk|eu|vn|tr|id"

PATTERNS: dict[str, str] = {
    "file_name": r"\S+\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|avif|hei[cf]|svg|psd|dng|cr2|nef|pdf|mp4|mov)",
    "camera_name": _any(
        r"(?:img|dsc[nf]?|dcim|pict|mvimg|pxl|gopr|cimg|sam|fb_img|screen ?shot|bildschirmfoto|capture d'écran|captura de pantalla|"
        r"whatsapp image|photo|image|scan|received|unnamed)[-_ ]*\p{Nd}[\p{Nd}_.\-~() ]*(?:at [\p{Nd}.: ]+(?:[ap]m)?)?",
        r"p\d{6,}|_?[a-z]{3}_?\d{4,}(?:[-_ ]?\p{Nd}+)*",
        r"[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
    "counter": _COUNTER,
    "click": _CLICK,
    "stock": _STOCK,
    "placeholder": _PLACEHOLDER,
    "url": rf"(?:https?://|ftp://|//|www\.)\S+|[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:{_DOMAIN})(?:/\S*)?",
    "email": r"[\p{L}\p{N}._%+-]+@[\p{L}\p{N}.-]+\.\p{L}{2,}",
    "date": rf"{_DATE}(?:[ T,]+{_CLOCK})?|{_CLOCK}",
    "size": rf"{_SIZE}(?:[ ,;/|-]+{_SIZE})*",
    "no_letters": r"[\p{N}\p{P}\p{S}\p{M}\p{Cf}\p{Co} ]+",
}
"""Kind -> RE2 pattern of the whole caption, case ignored. The kind stands in the ledger's detail; the first that matches names it."""

_AROUND = r"[\s\p{P}\p{S}]*"


def kinds(texts: pa.StringArray) -> pa.StringArray:
    """The kind of boilerplate that each text is, null for the others (and for the empty text)."""
    out = pa.nulls(len(texts), pa.string())
    for kind, pattern in PATTERNS.items():
        found = pc.match_substring_regex(texts, rf"(?i)^{_AROUND}(?:{pattern}){_AROUND}$")
        out = pc.if_else(pc.and_(pc.is_null(out), found), pa.scalar(kind), out)
    return out
