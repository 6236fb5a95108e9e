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

# Blocks per patient that networks learn from: those with the most spikes; 0 keeps all. Original: 3.
nb_best_blocks = 3

# The same for the classifier's validation and test, which say how often detect.py is right. 0 keeps all blocks, as
# detect.py meets them; annotations then choose none. Original: 3, which makes precision look better than it is.
nb_best_blocks_test = 0

# True also makes training windows of patients without any spike; False leaves such patients out (original).
# Validation and test get them in any case, unless nb_best_blocks_test = nb_best_blocks.
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

# Bad channels, in addition to those of the recording's own BadChannels file and info['bads']: a list of names, with or
# without the suffix of the run. Bad and missing channels are interpolated from the others.
bad_channels = []

# Recordings with gaps (discontinuous trials): 'join' makes one block, and filters each continuous part on its own;
# 'apart' makes a block of each part.
trials = 'join'

# Labels that mark spikes: a pattern or a list. * stands for anything, [-_ ] for one of these characters, and case does
# not matter. Labels that match spike_labels_exclude are no spikes: detections, no_spike, non-spike, not a spike.
# create_data_raw.py prints which labels counted and which were excluded.
spike_labels = ['*spike*', 'jj_*']
spike_labels_exclude = [
    'detected_spike*',
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
# 'current' uses the settings of this file. 'original' replaces some by the original's choices: standardize =
# 'window', masking = None, classifier = 'sfcn', second_look = False, copies = None, levels = 'all', window_size =
# 2.0, spike_spacing_from_border = 0.3, subwindow_size = 0.2, latent_nodes = None, a = 1.0, b = 1.0, c = 1.0, d = 1.0,
# e = 1.0, augmentation = 0.2, augmentation_fraction = 0.5, criterion = 'mse', classifier_loss = 'bce' and
# positive_weight = 35.0. Every script prints which it changed; windows must be made with recipe = 'original' too.
# Sizes of networks and batches, learning rates and epochs stay settings, whose defaults are the original's.
recipe = 'current'

# -------------------------------------------------------------------------------------------- windows
# Sampling rate of data_raw_NNN.pkl, in Hz, at most 10 000. Original: 150.
sfreq = 150

# Length of a window, in s; at most 100 000 samples. Original: 2 for the autoencoders.
window_size = 2.0

# Margin on both sides of a window in which no spike is labelled, in s: windows start every
# window_size - 2 x spike_spacing_from_border, so that their inner parts tile the block. Original: 0.3.
spike_spacing_from_border = 0.3

# Width of the rectangular pulse that marks a spike in labels_t, in s. A spike lasts less than 0.1 s. Windows from other
# scripts may have pulses of another length: it is read from labels_t, with a warning.
pulse_width = 0.1

# Scaling of the stored windows: 'window' or True, by mean and std of each window (original);
# 'block', by those of its block, which keeps a spike's amplitude; False, tesla as they are (z-scored when read).
# masking = 'context' is meant for 'block'.
standardize = 'block'

# True drops windows that deviate by more than artefact_threshold block standard deviations from the block's
# mean. It also drops spikes of high amplitude: the scripts print how many.
reject_artefacts = False

# Largest deviation allowed, in standard deviations of the block. Only used with reject_artefacts = True.
artefact_threshold = 20.0

# False keeps the windows of a patient that are complete and were made with these settings from the same file. Its
# content is compared only if its size or times have changed. True makes all windows again. The same holds for the
# data_raw files and detections of a study.
overwrite = False

# ---------------------------------------------------------------------------------------------- split
# What is kept apart between training, validation and test. 'patient': every patient is in one part. 'block': every
# block is in one part; this is no test on unseen patients. 'auto': 'patient' if three patients or more have spikes,
# otherwise 'block'.
split = 'auto'

# Fraction of the patients (or blocks) for validation: early stopping and the decision threshold.
validation_fraction = 0.25

# Fraction of the patients (or blocks) for the test.
test_fraction = 0.25

# Patients of each part: a list of numbers, or a text file with one number per line. None splits the patients that are
# in no list by the fractions. With all three given, patients in no list are left out.
training_patients = None
validation_patients = None
test_patients = None

# Folds of mode cv, over patients with about as many spikes in each; -1 leaves one patient out at a time.
n_splits = 5

# Mode cv: None trains every unfinished fold, then pools all folds. A number from 1 on trains only this fold; it needs
# model_nb, which is the same for the jobs that train the other folds of the run.
fold = None

# True keeps only as many spike-free training windows of the classifier as there are with spikes.
balanced = False

# -------------------------------------------------------------------------------------------- training
# Autoencoder: 'AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller' or 'wavelets'. The second word after main_train.py
# overrides this setting.
model = 'wavelets'

# Modes auto and cv: number of the run directory to make; None takes the next free number. Modes ft and clf: number of
# the run to start from; the new run takes the next free number. In every mode, the number of an unfinished run resumes
# that run, see resume.
model_nb = None

# True resumes the run model_nb if it is unfinished, with the run's settings instead of those of this file. False
# refuses the number of any run that exists.
resume = True

# What the autoencoder learns. None: to reconstruct its input (original). 'context': to predict a masked segment from
# the rest of the window; the score of a sub-window then comes from its residual, the part that is not predicted.
masking = 'context'

# Maps of the first convolution of AE1D, AE2D and their smaller versions, doubled from layer to layer. Original: 32.
width = 32

# wavelets: maps of the temporal encoder, one number per level of the transform. Original: [32, 32, 32].
filters = [32, 32, 32]

# wavelets: the wavelet, any discrete one of PyWavelets. Original: 'db5'; 'haar' was also tried.
pywt_family = 'db5'

# wavelets: how a window continues beyond its ends: 'periodization', 'symmetric', 'reflect', 'periodic', 'constant' or
# 'zero'. With 'periodization' a band has exactly as many values as it needs, spread evenly over the window; with the
# others its values are closer together than their times, and its errors shift by up to 20 samples towards the ends.
# An asymmetric wavelet shifts too: with db5, a detail at a sample describes the signal 3 samples later, the
# approximation that 21 samples earlier. So of what a masked segment holds of the approximation, its loss and its card
# see 56 %; with sym5, which is nearly symmetric, 93 %, and with haar 96 %.
pywt_mode = 'periodization'

# wavelets: length of the channels' embeddings from which the graph is learned, neighbours kept per channel, and
# steepness of the tanh. Original: 64, 20 and 3.
embedding_size = 64
top_k = 20
graph_alpha = 3.0

# wavelets: nodes of the deepest latent map (at most a quarter of the channels), halved from level to level towards the
# finest band. None is the original: no pooling, every channel keeps the maps of all filters, and white noise passes.
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

# Share of the training windows that get this noise, drawn anew in every epoch. The group's TensorFlow code: 0.5.
augmentation_fraction = 1.0

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
# Spike classifier. 'sfcn': the group's convolutional network on error cards (original). 'forest': extremely randomised
# trees on the field and time course at the peak of the error (without masking: on statistics of the errors per
# channel). 'hgb': gradient-boosted trees on the same. 'svm': a support vector machine
# on the same, reduced. 'latent': gradient-boosted trees on the latent maps.
# 'threshold': what is brief and long at once (without masking: the mean error); the autoencoder then
# learns from all windows, so that training uses no annotation.
# 'finetuned': a network on whole windows whose encoder is the trained autoencoder's; `levels` and the residual play no
# part. 'stacked': the mean of the log odds of forest and finetuned. 'raw': the group's network on the signal itself, no
# autoencoder plays a part (their published baseline).
classifier = 'forest'

# finetuned and stacked: 'pretrained' trains the autoencoder's encoder further; 'frozen' leaves it as it is; 'scratch'
# starts from a new one, without pseudo-labels, to see what the autoencoder brings.
encoder = 'pretrained'

# finetuned and stacked: learning rate of what is new, as a multiple of classifier_learning_rate, which is the
# encoder's.
head_rate = 10.0

# finetuned and stacked, with masking and an encoder that is not from 'scratch': most epochs in which a new network
# first learns pseudo-labels: what the score of threshold takes for spikes in the windows of all training patients,
# those of the autoencoder alone too. Validation chooses which epoch is kept. 0: none.
pretraining_epochs = 20

# finetuned, stacked and raw: what is changed at random in training windows, because no label depends on it: any of
# 'sign', 'mirror' (left and right of the helmet), 'amplitude' (by 20 %), 'shift' (by up to 7 samples; not with
# pseudo-labels), 'channels' (a tenth is set to 0) and 'noise' (as `augmentation` and `augmentation_fraction` say).
classifier_augmentation = ['sign', 'mirror', 'amplitude', 'shift', 'channels']

# finetuned, stacked and raw: weight in the loss of a sub-window that the network, as it is at that moment, takes for
# a spike though no annotation lies in it, nor within a sub-window of it; 1 gives it none.
hard_negatives = 1.0

# True looks a second time, with masking, at what every classifier but sfcn and latent has scored: a sub-window counts
# for more if its recording has others that are probable too and have the same field and time course. How much more is
# fitted on the annotations of validation. False takes every sub-window by itself.
second_look = True

# forest, hgb, svm, stacked and threshold with masking, and the pseudo-labels of finetuned read: 'residual', what the
# autoencoder does not predict from the context; 'spectrum', what the spectrum of the block itself does not predict; or
# 'signal', the signal itself. The last two make no use of the autoencoder, which is trained all the same.
features = 'residual'

# forest, hgb, svm and latent: copies of the training windows that are trained on too, because their labels are the
# same. 'sign': of the opposite sign; 'mirror': left and right of the helmet exchanged; 'both': these two, and both at
# once. None: no copies.
copies = 'sign'

# Errors that the classifier sees: 'all', or a list of the model's (reconstruction, target) pairs, counted from 0. Of
# wavelets, 0 is the signal, 1 to 3 the details from the finest on, 4 the approximation; the others have only 0. With
# masking, forest, hgb, svm, stacked and threshold always look at the signal.
levels = 'all'

# Length of the sub-windows that the classifier scores, in s. Original: 0.2.
subwindow_size = 0.2

# Maps of the classifier's first convolution, doubled from layer to layer. Original: 32.
classifier_width = 32

# Sub-windows per training batch of the classifier. Original: 240.
classifier_batch_size = 240

# Learning rate of the classifier. Original: 1e-4.
classifier_learning_rate = 1e-4

# Optimizer ('adam', 'adamw' or 'sgd') and weight decay of a network as classifier. Original: Adam, without any.
classifier_optimizer = 'adam'
classifier_weight_decay = 0.0

# sfcn: 'bce', cross-entropy, or 'focal', the same times (1 - probability of the right answer) ** focal_gamma.
classifier_loss = 'bce'
focal_gamma = 2.0

# Largest number of epochs of the classifier. Original: 80.
classifier_num_epochs = 80

# Epochs without a better validation after which the classifier's training stops. What is better, and which epoch is
# kept: 'loss', the smallest loss; 'pr_auc', the largest area under the curve of precision and recall.
classifier_n_epochs_stop = 15
early_stop_on = 'loss'

# Weight of a spike sub-window in the loss relative to any other; None balances the training set. Original: 35.
positive_weight = 35.0

# ------------------------------------------------------------------------------------------ evaluation
# How scores become probabilities, fitted on validation: 'temperature' (with an offset; keeps their order) or
# 'isotonic' (rising steps).
calibration = 'temperature'

# How the decision threshold is chosen on validation. 'f1': the best F1 of the sub-windows. 'sensitivity': the highest
# threshold that finds target_sensitivity of the annotated spikes. 'false_alarms': the lowest threshold with at most
# false_alarm_budget false alarms per minute. The last two try a hundred thresholds.
threshold_policy = 'f1'
target_sensitivity = 0.8
false_alarm_budget = 1.0

# Largest distance between a detection and the annotated spike that it finds, in s.
tolerance = 0.1

# Samples of patients, with replacement, for the intervals of the test metrics.
bootstrap_samples = 1000

# ------------------------------------------------------------------------------------------ detections
# Folder in which detect.py makes a folder <recording>_detections for each recording; None makes it next to each.
output = None

# Folder of BIDS derivatives, such as 'study/derivatives/spikes', in which detect.py also writes a table of events for
# each recording with a name of BIDS; None writes none.
bids_derivatives = None

# True leaves out detections in segments marked bad (bad.segments and ClassFile.cls of a CTF recording, annotations
# BAD...); False keeps them and marks them in the column `bad`.
drop_bad_segments = False

# Name and colour of the class of markers that detect.py writes, and name of the annotations: words without spaces.
# spike_labels_exclude should contain the name, so that no detection counts as an expert's spike.
marker_name = 'detected_spike'
marker_color = 'green'

# True makes a class of markers for every group of events that are alike (the column `cluster`): marker_name_1 for the
# largest, marker_name_2, ..., each in a colour of its own; marker_name then holds the events that are like no other.
markers_per_cluster = False

# True also merges the class into the CTF recording's own MarkerFile.mrk, after a backup. No other file of a recording
# is ever written to.
markers_into_recording = False

# ---------------------------------------------------------------------------------------------- review
# Order in which review.py lists events and goes through them: 'doubt', those near the threshold first; 'certainty', the
# most probable first; 'time'.
review_order = 'doubt'

# Who reviews, for the log of review.py; None asks.
reviewer = None

# -------------------------------------------------------------------------------------------- machine
# Seed of every source of randomness: the same settings and seed give the same CSVs on the CPU, bit for bit with the
# same number of threads (OMP_NUM_THREADS; params.json holds the number of a run).
seed = 0

# 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.
device = 'auto'

# Precision of the networks' convolutions and matrix products. 'float32'. 'bfloat16': faster on GPUs that have it
# (compute capability 8.0, from 2020 on), where long trainings are also compiled; weights, losses and errors stay
# float32. 'auto': 'bfloat16' on such a GPU and 'float32' elsewhere. A CPU with AVX512-BF16 or AMX trains 1.3 to 1.8
# times as fast in 'bfloat16'. params.json says how a run was trained; modes ft and clf and detect.py use the setting of
# the time they run.
precision = 'auto'

# Patients of which files are made at the same time: windows, and data_raw files and detections of a study. For windows
# each takes the memory of its data_raw_NNN.pkl: 0.9 GB for 15 blocks of 3 minutes, so that 16 GB of memory do for 12.
n_jobs = 1

# Additional processes that read batches; 0 reads them in the main process. The batches are the same, but that on a GPU
# these processes draw the noise, and otherwise the GPU, from other random numbers.
num_workers = 0

# Where training reads windows from. True: they are loaded to the device at the start, as float32. False: every batch is
# read from the files. 'auto': on the device if they take at most a quarter of its free memory; otherwise in the
# machine's memory by the same rule; otherwise from the files. The batches are the same bit for bit.
preload = 'auto'

# True: training on a CPU keeps memory that it has freed for later steps, which makes a step of AE1D up to 1.6 times as
# fast and takes up to 1.6 times the memory. False gives it back. It changes no result, and nothing on a GPU.
keep_memory = True

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

# Signal-to-noise ratio: the spike's field at its peak (std over channels) over the background's std, mean over spikes.
simulated_snr = 2.5

# Jitter of the annotations around the true peak (std, in s), and the fraction of spikes left unannotated.
annotation_jitter = 0.01
annotation_missed = 0.1
