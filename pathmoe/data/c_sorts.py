"""Templates of C sort functions, for `c_functions`.

Placeholders: $f function, $a array, $n length, $i $j $k indices, $x value, $T element type, $I index type, $gt the
operator that says that two neighbours are in the wrong order. `SWAP(x, y);` and `//~ comment` lines are rendered in
the style of the program.
"""

SORTS: dict[str, str] = {
    "bubble sort": """
void $f($T $a[], $I $n) {
    for ($I $i = 0; $i < $n - 1; $i++) {
        //~ after each pass the last element of the rest is in its place
        for ($I $j = 0; $j < $n - 1 - $i; $j++) {
            if ($a[$j] $gt $a[$j + 1]) {
                SWAP($a[$j], $a[$j + 1]);
            }
        }
    }
}
""",
    "bubble sort that stops early": """
void $f($T *$a, $I $n) {
    int swapped = 1;
    while (swapped) {
        swapped = 0;
        for ($I $i = 1; $i < $n; $i++) {
            if ($a[$i - 1] $gt $a[$i]) {
                SWAP($a[$i - 1], $a[$i]);
                swapped = 1;
            }
        }
        //~ the last one is settled now
        $n--;
    }
}
""",
    "selection sort": """
void $f($T $a[], $I $n) {
    for ($I $i = 0; $i < $n - 1; $i++) {
        $I best = $i;
        //~ find the next element of the rest
        for ($I $j = $i + 1; $j < $n; $j++) {
            if ($a[best] $gt $a[$j]) {
                best = $j;
            }
        }
        if (best != $i) {
            SWAP($a[$i], $a[best]);
        }
    }
}
""",
    "insertion sort": """
void $f($T $a[], $I $n) {
    for ($I $i = 1; $i < $n; $i++) {
        $T $x = $a[$i];
        $I $j = $i - 1;
        //~ make room for the new element
        while ($j >= 0 && $a[$j] $gt $x) {
            $a[$j + 1] = $a[$j];
            $j--;
        }
        $a[$j + 1] = $x;
    }
}
""",
    "insertion sort on pointers": """
void $f($T *$a, $I $n) {
    $T *end = $a + $n;
    for ($T *p = $a; p < end; p++) {
        //~ sink the element until its left neighbour is in order
        for ($T *q = p; q > $a && q[-1] $gt q[0]; q--) {
            SWAP(q[-1], q[0]);
        }
    }
}
""",
    "binary insertion sort": """
void $f($T $a[], $I $n) {
    for ($I $i = 1; $i < $n; $i++) {
        $T $x = $a[$i];
        $I low = 0;
        $I high = $i;
        while (low < high) {
            $I mid = low + (high - low) / 2;
            if ($a[mid] $gt $x) {
                high = mid;
            } else {
                low = mid + 1;
            }
        }
        //~ shift the tail by one place
        for ($I $j = $i; $j > low; $j--) {
            $a[$j] = $a[$j - 1];
        }
        $a[low] = $x;
    }
}
""",
    "shell sort": """
void $f($T $a[], $I $n) {
    for ($I gap = $n / 2; gap > 0; gap /= 2) {
        //~ insertion sort of each slice with this gap
        for ($I $i = gap; $i < $n; $i++) {
            $T $x = $a[$i];
            $I $j;
            for ($j = $i; $j >= gap && $a[$j - gap] $gt $x; $j -= gap) {
                $a[$j] = $a[$j - gap];
            }
            $a[$j] = $x;
        }
    }
}
""",
    "comb sort": """
void $f($T $a[], $I $n) {
    $I gap = $n;
    int done = 0;
    while (!done) {
        //~ shrink the gap by about 1.3
        gap = gap * 10 / 13;
        if (gap <= 1) {
            gap = 1;
            done = 1;
        }
        for ($I $i = 0; $i + gap < $n; $i++) {
            if ($a[$i] $gt $a[$i + gap]) {
                SWAP($a[$i], $a[$i + gap]);
                done = 0;
            }
        }
    }
}
""",
    "cocktail sort": """
void $f($T $a[], $I $n) {
    $I left = 0;
    $I right = $n - 1;
    while (left < right) {
        //~ forwards
        for ($I $i = left; $i < right; $i++) {
            if ($a[$i] $gt $a[$i + 1]) {
                SWAP($a[$i], $a[$i + 1]);
            }
        }
        right--;
        //~ and backwards
        for ($I $i = right; $i > left; $i--) {
            if ($a[$i - 1] $gt $a[$i]) {
                SWAP($a[$i - 1], $a[$i]);
            }
        }
        left++;
    }
}
""",
    "gnome sort": """
void $f($T $a[], $I $n) {
    for ($I $i = 0; $i < $n;) {
        if ($i == 0 || !($a[$i - 1] $gt $a[$i])) {
            $i++;
        } else {
            SWAP($a[$i - 1], $a[$i]);
            $i--;
        }
    }
}
""",
    "pancake sort": """
static void flip($T $a[], $I last) {
    for ($I $i = 0; $i < last; $i++, last--) {
        SWAP($a[$i], $a[last]);
    }
}

void $f($T $a[], $I $n) {
    for ($I size = $n; size > 1; size--) {
        $I best = 0;
        for ($I $i = 1; $i < size; $i++) {
            if ($a[$i] $gt $a[best]) {
                best = $i;
            }
        }
        //~ bring it to the front, then to the end
        flip($a, best);
        flip($a, size - 1);
    }
}
""",
    "merge sort": """
static void merge_halves($T $a[], $T buffer[], $I low, $I mid, $I high) {
    $I $i = low;
    $I $j = mid;
    for ($I $k = low; $k < high; $k++) {
        //~ take from the left half while it is in order
        if ($i < mid && ($j >= high || !($a[$i] $gt $a[$j]))) {
            buffer[$k] = $a[$i++];
        } else {
            buffer[$k] = $a[$j++];
        }
    }
    for ($I $k = low; $k < high; $k++) {
        $a[$k] = buffer[$k];
    }
}

static void sort_range($T $a[], $T buffer[], $I low, $I high) {
    if (high - low < 2) {
        return;
    }
    $I mid = low + (high - low) / 2;
    sort_range($a, buffer, low, mid);
    sort_range($a, buffer, mid, high);
    merge_halves($a, buffer, low, mid, high);
}

void $f($T $a[], $I $n) {
    $T *buffer = malloc($n * sizeof *buffer);
    if (buffer == NULL) {
        return;
    }
    sort_range($a, buffer, 0, $n);
    free(buffer);
}
""",
    "bottom-up merge sort": """
void $f($T *$a, $I $n) {
    $T *buffer = malloc($n * sizeof *buffer);
    if (!buffer) {
        return;
    }
    for ($I width = 1; width < $n; width *= 2) {
        //~ merge neighbouring runs of this width
        for ($I low = 0; low < $n; low += 2 * width) {
            $I mid = low + width < $n ? low + width : $n;
            $I high = low + 2 * width < $n ? low + 2 * width : $n;
            $I $i = low, $j = mid;
            for ($I $k = low; $k < high; $k++) {
                if ($i < mid && ($j >= high || !($a[$i] $gt $a[$j]))) {
                    buffer[$k] = $a[$i++];
                } else {
                    buffer[$k] = $a[$j++];
                }
            }
        }
        memcpy($a, buffer, $n * sizeof *$a);
    }
    free(buffer);
}
""",
    "quicksort (Lomuto)": """
static $I partition($T $a[], $I low, $I high) {
    //~ the last element is the pivot
    $T pivot = $a[high];
    $I $i = low;
    for ($I $j = low; $j < high; $j++) {
        if (pivot $gt $a[$j]) {
            SWAP($a[$i], $a[$j]);
            $i++;
        }
    }
    SWAP($a[$i], $a[high]);
    return $i;
}

static void sort_range($T $a[], $I low, $I high) {
    if (low < high) {
        $I middle = partition($a, low, high);
        sort_range($a, low, middle - 1);
        sort_range($a, middle + 1, high);
    }
}

void $f($T $a[], $I $n) {
    sort_range($a, 0, $n - 1);
}
""",
    "quicksort (Hoare)": """
static void sort_range($T $a[], $I low, $I high) {
    $T pivot = $a[low + (high - low) / 2];
    $I $i = low;
    $I $j = high;
    while ($i <= $j) {
        while (pivot $gt $a[$i]) {
            $i++;
        }
        while ($a[$j] $gt pivot) {
            $j--;
        }
        if ($i <= $j) {
            SWAP($a[$i], $a[$j]);
            $i++;
            $j--;
        }
    }
    //~ both sides of the pivot
    if (low < $j) {
        sort_range($a, low, $j);
    }
    if ($i < high) {
        sort_range($a, $i, high);
    }
}

void $f($T $a[], $I $n) {
    if ($n > 1) {
        sort_range($a, 0, $n - 1);
    }
}
""",
    "heapsort": """
static void sift_down($T $a[], $I root, $I end) {
    while (2 * root + 1 < end) {
        $I child = 2 * root + 1;
        if (child + 1 < end && $a[child + 1] $gt $a[child]) {
            child++;
        }
        if (!($a[child] $gt $a[root])) {
            return;
        }
        SWAP($a[root], $a[child]);
        root = child;
    }
}

void $f($T $a[], $I $n) {
    //~ build the heap
    for ($I $i = $n / 2 - 1; $i >= 0; $i--) {
        sift_down($a, $i, $n);
    }
    //~ move the root behind the shrinking heap
    for ($I $i = $n - 1; $i > 0; $i--) {
        SWAP($a[0], $a[$i]);
        sift_down($a, 0, $i);
    }
}
""",
    "sort by the library's qsort": """
static int compare(const void *left, const void *right) {
    const $T *p = left;
    const $T *q = right;
    return (*p $gt *q) - (*q $gt *p);
}

void $f($T *$a, $I $n) {
    qsort($a, $n, sizeof *$a, compare);
}
""",
}
"""From the title of an algorithm to its template; all are called as `$f($a, $n)`."""
