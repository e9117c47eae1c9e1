void sort(int a[], int n) {
