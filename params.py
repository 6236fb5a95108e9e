"""Every setting of the pipeline, with its default. Edit the values here, or give `name=value` words to a script.

Relative paths in this file start at this file's folder; on a command line they start at the current folder.
"original" marks the value of the group's research code; the other defaults are this project's.
"""

# ---------------------------------------------------------------------------------------------- paths
# Directory of the input files data_raw_NNN.pkl, one per patient.
path_raw_data = 'data/raw'

# [autoencoder directory, classifier directory] of the window files made by the two create_windows scripts.
path_extracted_data = ['data/windows_ae', 'data/windows_clf']

# Directory that receives one run directory <MODEL>_<nb> per training.
path_writing_data = 'results'

# ------------------------------------------------------------------------------------------- patients
# Patients to use: a number (4), a list of numbers ([4, 7, 12]), or False for every patient found.
patient = False

# Blocks kept per patient: those with the most spikes; 0 keeps all. Original: 3.
nb_best_blocks = 3

# True also makes windows of patients without any spike; False leaves such patients out (original).
include_spike_free = False

# ----------------------------------------------------------------------------------------- recordings
# Band kept by create_data_raw.py, in Hz. high_pass must be at least 0.01 and low_pass as much below half of sfreq; a
# recording needs twice the rate of low_pass.
# Original: 0.5 and 50.
high_pass = 0.5
low_pass = 50.0

# Frequencies of mains noise to take out, in Hz: a number, a list, or None. From 1 Hz to 2 Hz below half of sfreq, and
# 2 Hz apart or more.
notch = None

# Bad channels, with or without the suffix of the run, beside those of the recording's own BadChannels file and
# info['bads']: a list of names. Bad and missing channels are interpolated from the others.
bad_channels = []

# What becomes of a recording with gaps (discontinuous trials): 'join' makes one block, each continuous part filtered
# on its own; 'apart' makes a block of each part.
trials = 'join'

# Labels that mark spikes: a pattern or a list, in which * stands for anything, [-_ ] for one of these characters, and
# case does not matter; those that match spike_labels_exclude are no spikes: detections, no_spike, non-spike,
# not a spike. create_data_raw.py prints which labels counted and which were excluded.
spike_labels = ['*spike*', 'jj_*']
spike_labels_exclude = [
    'detected_spike',
    'bad*',
    'no[-_ ]*spike*',
    'non[-_ ]*spike*',
    'not[-_ ]*spike*',
    '*[-_ ]no[-_ ]*spike*',
    '*[-_ ]non[-_ ]*spike*',
    '*[-_ ]not[-_ ]*spike*',
    '*nospike*',
    '*nonspike*',
    '*notspike*',
]

# Labels of corrected markers: create_data_raw.py reads them into reannot of an existing data_raw_NNN.pkl. None makes a
# new file.
reannot_labels = None

# -------------------------------------------------------------------------------------------- recipe
# 'current' takes the settings as they are. 'original' takes the original's choices whatever they say: standardize =
# 'window', masking = None, classifier = 'sfcn', levels = 'all', window_size = 2.0, spike_spacing_from_border = 0.3,
# subwindow_size = 0.2, a = 1.0, b = 1.0, c = 1.0, d = 1.0, e = 1.0, augmentation = 0.2, criterion = 'mse',
# classifier_loss = 'bce' and positive_weight = 35.0. Every script prints which it changed; windows must be made with
# recipe = 'original' too. Sizes of networks and batches, learning rates and epochs stay settings, whose defaults are
# the original's.
recipe = 'current'

# -------------------------------------------------------------------------------------------- windows
# Sampling rate of data_raw_NNN.pkl, in Hz, at most 10 000. Original: 150.
sfreq = 150

# Length of a window, in s; at most 100 000 samples. Original: 2 for the autoencoders.
window_size = 2.0

# Margin on both sides of a window in which no spike is labelled, in s: windows start every
# window_size - 2 x spike_spacing_from_border, so that their inner parts tile the block. Original: 0.3.
spike_spacing_from_border = 0.3

# Width of the rectangular pulse that marks a spike in labels_t, in s. A spike lasts less than 0.1 s. In windows that
# other scripts made, the length of the pulses is taken from labels_t, with a warning where it is another.
pulse_width = 0.1

# Scaling of the stored windows: 'window' or True, by mean and std of each window (original);
# 'block', by those of its block, which keeps a spike's amplitude; False, tesla as they are (z-scored when read).
# masking = 'context' is meant for 'block'.
standardize = 'block'

# True drops windows that deviate by more than artefact_threshold block standard deviations from the block's
# mean. Known to drop spikes of high amplitude too: the scripts print how many.
reject_artefacts = False

# Largest deviation allowed, in standard deviations of the block. Only used with reject_artefacts = True.
artefact_threshold = 20.0

# False keeps the windows of a patient that are complete and were made with these settings from the same file (same
# content; looked at only where size or times of the file changed); True makes them again.
overwrite = False

# ---------------------------------------------------------------------------------------------- split
# What is kept apart between training, validation and test: 'patient'; 'block' (the blocks of every patient are
# shared out: not a test on unseen patients); 'auto', 'patient' with three patients with spikes or more, else 'block'.
split = 'auto'

# Fraction of the patients (or blocks) for validation: early stopping and the decision threshold.
validation_fraction = 0.25

# Fraction of the patients (or blocks) for the test.
test_fraction = 0.25

# Patients of each part by name: a list of numbers, or a text file with one per line; None shares out by the fractions
# what no list names. With all three given, other patients are left out.
training_patients = None
validation_patients = None
test_patients = None

# Folds of mode cv, over patients with about as many spikes in each; -1 leaves one patient out at a time.
n_splits = 5

# Mode cv: None trains every fold that is not finished, then makes the tables above them. A number from 1 on trains this
# fold alone; model_nb must be given, which jobs that train other folds of the same run share.
fold = None

# True keeps only as many spike-free training windows of the classifier as there are with spikes.
balanced = False

# -------------------------------------------------------------------------------------------- training
# Autoencoder: 'AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller' or 'wavelets'. The second word after main_train.py goes
# before this setting.
model = 'wavelets'

# Modes auto and cv: number of the run directory to make; None takes the next free number. Modes ft and clf: number of
# the run to start from; the new run takes the next free number. In every mode, the number of an unfinished run goes on
# with that run, see resume.
model_nb = None

# True goes on with the run model_nb where it is unfinished, with its own settings, whatever this file says by now.
# False refuses a number that is taken.
resume = True

# What the autoencoder learns. None: to reconstruct what it sees (original). 'context': to foretell a stretch hidden
# from it by what lies around; each sub-window is then judged by what the rest of its window does not foretell.
masking = 'context'

# Maps of the first convolution of AE1D, AE2D and their smaller versions, doubled from layer to layer. Original: 32.
width = 32

# wavelets: maps of the temporal encoder, one number per level of the transform. Original: [32, 32, 32].
filters = [32, 32, 32]

# wavelets: the wavelet, any discrete one of PyWavelets. Original: 'db5'; 'haar' was also tried.
pywt_family = 'db5'

# wavelets: how a window continues beyond its ends: 'periodization', 'symmetric', 'reflect', 'periodic', 'constant' or
# 'zero'. With 'periodization' a band has exactly as many values as it needs, spread evenly over the window; with the
# others its values are closer together than their times, and its errors lie off by up to 20 samples towards the ends.
# An asymmetric wavelet shifts too: with db5, details lie 3 samples early and the approximation 21 late; with haar, 0.
pywt_mode = 'periodization'

# wavelets: length of the channels' embeddings from which the graph is learned, neighbours kept per channel, and
# steepness of the tanh. Original: 64, 20 and 3.
embedding_size = 64
top_k = 20
graph_alpha = 3.0

# wavelets: nodes of the deepest latent map (at most a quarter of the channels), halved from level to level towards the
# finest band.
latent_nodes = 64

# wavelets: weights in the loss of the signal (a), its three details from the finest on (b, c, d) and its approximation
# (e), divided by their sum. With more than three levels, d is the weight of every further detail; with fewer, d and c
# have no effect. Original: equal.
a = 1.0
b = 1.0
c = 1.0
d = 1.0
e = 1.0

# Windows per training batch of the autoencoder. Original: 200.
batch_size = 200

# Standard deviation of the Gaussian noise added to the autoencoder's input, never to its target, in units of
# the scaled windows; 0 for none. Original: 0.2.
augmentation = 0.2

# Reconstruction loss: 'mse' (original) or 'mae'.
criterion = 'mse'

# 'adam' (original), 'adamw' or 'sgd'.
optimizer = 'adam'

# Learning rate of the autoencoder. Original: 1e-3.
learning_rate = 1e-3

# Weight decay of the autoencoder. Original: 5e-4.
weight_decay = 5e-4

# Schedule of both learning rates. 'step': multiplied by gammaLR every stepLR epochs (original, 50 and 0.8).
# 'plateau': multiplied by gammaLR when the validation loss has not fallen for plateau_patience epochs (the group's
# TensorFlow code).
scheduler = 'step'
stepLR = 50
gammaLR = 0.8
plateau_patience = 5

# Mode ft multiplies both learning rates by this.
fine_tuning_rate = 0.1

# Largest number of epochs of the autoencoder. Original: 100.
num_epochs = 100

# Epochs without a better validation loss after which training stops. Original: 10.
n_epochs_stop = 10

# ------------------------------------------------------------------------------------------ classifier
# Spike classifier. 'sfcn': the group's convolutional network on error cards (original). 'hgb': gradient-boosted trees
# on the field and time course at the peak of the error (without masking: on statistics of the errors per channel).
# 'svm': a support vector machine on the same, reduced. 'latent': gradient-boosted trees on the latent maps.
# 'threshold': how high and how brief the peak of the error is (without masking: the mean error); the autoencoder then
# learns from all windows, so that training uses no annotation.
classifier = 'hgb'

# Errors that the classifier sees: 'all', or a list of the model's (reconstruction, target) pairs, counted from 0. Of
# wavelets, 0 is the signal, 1 to 3 the details from the finest on, 4 the approximation; the others have only 0. With
# masking, hgb, svm and threshold always look at the signal.
levels = 'all'

# Length of the sub-windows that are judged, in s. Original: 0.2.
subwindow_size = 0.2

# Maps of the classifier's first convolution, doubled from layer to layer. Original: 32.
classifier_width = 32

# Sub-windows per training batch of the classifier. Original: 240.
classifier_batch_size = 240

# Learning rate of the classifier. Original: 1e-4.
classifier_learning_rate = 1e-4

# sfcn: 'bce', cross-entropy, or 'focal', the same times (1 - probability of the right answer) ** focal_gamma.
classifier_loss = 'bce'
focal_gamma = 2.0

# Largest number of epochs of the classifier. Original: 80.
classifier_num_epochs = 80

# Epochs without a better validation loss after which the classifier's training stops.
classifier_n_epochs_stop = 15

# Weight of a spike sub-window in the loss relative to any other; None balances the training set. Original: 35.
positive_weight = 35.0

# ------------------------------------------------------------------------------------------ evaluation
# How scores become probabilities, fitted on validation: 'temperature' (with an offset; keeps their order) or
# 'isotonic' (rising steps).
calibration = 'temperature'

# What the decision threshold is chosen by, on validation: 'f1', the best F1 of the sub-windows; 'sensitivity', the
# highest threshold that finds target_sensitivity of the annotated spikes; 'false_alarms', the lowest with at most
# false_alarm_budget false alarms per minute. The last two try a hundred thresholds.
threshold_policy = 'f1'
target_sensitivity = 0.8
false_alarm_budget = 1.0

# Greatest distance of a detection from the annotated spike it has found, in s.
tolerance = 0.1

# Samples of patients, with replacement, for the intervals of the test figures.
bootstrap_samples = 1000

# ------------------------------------------------------------------------------------------ detections
# Folder in which detect.py makes a folder <recording>_detections for each recording; None makes it beside each.
output = None

# True leaves out detections in segments marked bad (bad.segments and ClassFile.cls of a CTF recording, annotations
# BAD...); False keeps them and marks them in the column `bad`.
drop_bad_segments = False

# Name and colour of the class of markers that detect.py writes, and name of the annotations: words without spaces.
# spike_labels_exclude should hold the name, so that no detection is taken for an expert's spike.
marker_name = 'detected_spike'
marker_color = 'green'

# True also merges the class into the CTF recording's own MarkerFile.mrk, of which a backup is kept; the rest of a
# recording is never written to.
markers_into_recording = False

# -------------------------------------------------------------------------------------------- machine
# Seed of every source of randomness: the same settings and seed give the same CSVs on the CPU, bit for bit with the
# same number of threads (OMP_NUM_THREADS; params.json says how many there were).
seed = 0

# 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.
device = 'auto'

# Precision of the networks' convolutions and matrix products: 'float32'; 'bfloat16', faster on GPUs that have it
# (compute capability 8.0, from 2020 on), where long trainings are compiled besides, while weights, losses and errors
# stay float32; 'auto', 'bfloat16' on such a GPU and 'float32' elsewhere. params.json says what a run was trained in;
# modes ft and clf and detect.py go by what is set when they run.
precision = 'auto'

# Patients whose windows are made at the same time. Each takes the memory of its data_raw_NNN.pkl: 0.9 GB for 15 blocks
# of 3 minutes, so that 16 GB of memory do for 12.
n_jobs = 1

# Processes that read batches beside the main one; 0 reads them in the main process. The batches are the same.
num_workers = 0

# Where training reads windows from. True: they are put on the device once, as float32, and batches are gathered there.
# False: batches are read from the files. 'auto': on the device if they take at most a quarter of its free memory, or
# else in the machine's memory by the same rule, or else from the files. On the CPU the batches are the same bit for
# bit; on a GPU, windows held there get their noise from its own generator.
preload = 'auto'

# ------------------------------------------------------------------------------------ simulated patients
# Number of patients that simulate_data_raw.py writes; the last simulated_spike_free of them have no spike.
simulated_patients = 10
simulated_spike_free = 1

# Blocks per patient and their length in s. Real patients have about 15 blocks of 180 s.
simulated_blocks = 4
simulated_seconds = 60

# Spikes per minute (real patients: 0.5 to 10), and sharp transients per minute that are no spikes.
simulated_spike_rate = 9.0
simulated_distractor_rate = 4.0

# Spike's field at its peak (std over channels) over the background's std, mean over spikes.
simulated_snr = 2.5

# Jitter of the annotations around the true peak (std, in s), and the fraction of spikes left unannotated.
annotation_jitter = 0.01
annotation_missed = 0.1
